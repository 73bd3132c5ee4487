package handover

import "golang.org/x/sys/unix"

// inMemory says whether a folder is on a tmpfs.
func inMemory(dir string) bool {
	var stat unix.Statfs_t
	return unix.Statfs(dir, &stat) == nil && (stat.Type == unix.TMPFS_MAGIC || stat.Type == unix.RAMFS_MAGIC)
}
