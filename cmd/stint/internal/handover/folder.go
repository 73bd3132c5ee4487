// Package handover hands credentials to a command: as environment variables and as files in a folder that is gone when
// the command is.
package handover

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	folderPrefix = "stint-run-"
	lockName     = ".lock"
	folderMode   = 0o700
	fileMode     = 0o600
	staleAfter   = time.Minute // a folder without a lock is somebody's who is just starting, or died doing so
	attempts     = 3
)

// Folder is a private folder for files with credentials, mode 0700. Whoever made it holds a lock in it, so that the
// folder of a process that was killed is known as such, and removed by the next one of the same user.
type Folder struct {
	path   string
	lock   *os.File
	memory bool
}

// Open makes a folder in memory: under $XDG_RUNTIME_DIR or /dev/shm where these are a tmpfs, else, on disk, under the
// temporary directory. First it removes what killed processes of the same user left behind.
func Open() (*Folder, error) {
	base, memory := chooseBase(os.Getenv("XDG_RUNTIME_DIR"), "/dev/shm")
	return open(base, memory)
}

func chooseBase(candidates ...string) (base string, memory bool) {
	for _, dir := range candidates {
		if dir != "" && filepath.IsAbs(dir) && inMemory(dir) && unix.Access(dir, unix.W_OK|unix.X_OK) == nil {
			return dir, true
		}
	}
	return os.TempDir(), false
}

func open(base string, memory bool) (*Folder, error) {
	sweep(base, time.Now())
	for range attempts {
		path, err := os.MkdirTemp(base, folderPrefix)
		if err != nil {
			return nil, fmt.Errorf("make folder for credentials: %w", err)
		}
		lock, err := takeLock(path, os.O_CREATE|os.O_EXCL)
		if err == nil {
			return &Folder{path: path, lock: lock, memory: memory}, nil
		}
		if removeErr := os.RemoveAll(path); removeErr != nil { //nolint:gosec // it was just made
			return nil, fmt.Errorf("make folder for credentials: %w", errors.Join(err, removeErr))
		}
	}
	return nil, errors.New("make folder for credentials: somebody else takes them away")
}

// Path returns the folder's path.
func (f *Folder) Path() string { return f.path }

// InMemory says whether nothing in the folder ever reaches a disk, swap aside.
func (f *Folder) InMemory() bool { return f.memory }

// Close removes the folder and everything in it.
func (f *Folder) Close() error {
	err := os.RemoveAll(f.path)
	return errors.Join(err, f.lock.Close())
}

// takeLock locks a folder without waiting. The lock goes with the process; children do not inherit it.
func takeLock(path string, flags int) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR|unix.O_NOFOLLOW|flags, fileMode) //nolint:gosec // a folder of ours
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// sweep removes folders of this user whose process is gone. What cannot be removed stays: the credentials in it have
// ended with their task.
func sweep(base string, now time.Time) {
	found, err := filepath.Glob(filepath.Join(base, folderPrefix+"*"))
	if err != nil {
		return
	}
	for _, path := range found {
		if !ours(path) {
			continue
		}
		lock, err := takeLock(path, 0)
		switch {
		case err == nil:
			_ = os.RemoveAll(path) //nolint:gosec // a folder of ours
			_ = lock.Close()
		case errors.Is(err, os.ErrNotExist) && old(path, now):
			_ = os.RemoveAll(path) //nolint:gosec // a folder of ours
		}
	}
}

// ours says whether a path is a folder, not a link, of this user.
func ours(path string) bool {
	info, err := os.Lstat(path) //nolint:gosec // it is only looked at
	if err != nil || !info.IsDir() {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Getuid()
}

func old(path string, now time.Time) bool {
	info, err := os.Lstat(path) //nolint:gosec // it is only looked at
	return err == nil && now.Sub(info.ModTime()) > staleAfter
}
