package devdomain

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

const (
	dirMode = 0o700
	// dirPattern names the directories that New makes. It has to be short: a socket's path has about a hundred bytes.
	dirPattern = "stint-"
	// lockName is the file by whose lock a directory has a living owner.
	lockName = "devdomain.lock"
)

// socketDir makes the directory of the sockets and sees to its mode. It returns the lock on one that it chose itself.
func socketDir(dir string) (string, *os.File, error) {
	if dir == "" {
		if parent := os.Getenv("XDG_RUNTIME_DIR"); parent != "" {
			if made, owner, err := ownDir(parent); err == nil {
				return made, owner, nil
			}
		}
		return ownDir(os.TempDir()) // the runtime directory may be unset, gone or another user's
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", nil, err
	}
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return "", nil, err
	}
	return dir, nil, os.Chmod(dir, dirMode)
}

// ownDir makes a directory that is locked until its process ends, and removes those whose process has ended.
func ownDir(parent string) (string, *os.File, error) {
	sweep(parent)
	dir, err := os.MkdirTemp(parent, dirPattern)
	if err != nil {
		return "", nil, err
	}
	owner, err := lockNew(dir)
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir)) //nolint:gosec // in a directory that the user names
	}
	return dir, owner, nil
}

// lockNew locks a new directory. The file has its name only once it is locked, so that nobody takes it for one left over.
func lockNew(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600) //nolint:gosec // in a directory that the user names
	if err != nil {
		return nil, err
	}
	if err = lock(f); err == nil {
		err = os.Rename(path+".new", path) //nolint:gosec // in a directory that the user names
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return f, nil
}

func lock(f *os.File) error {
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
}

// sweep removes directories of this user's whose owner was killed. What cannot be told for certain stays.
func sweep(parent string) {
	dirs, err := filepath.Glob(filepath.Join(parent, dirPattern+"*"))
	if err != nil {
		return
	}
	for _, dir := range dirs {
		if info, err := os.Lstat(dir); err != nil || !info.IsDir() || !mine(info) { //nolint:gosec // in a directory that the user names
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|syscall.O_NOFOLLOW, 0) //nolint:gosec // in a directory that the user names
		if err != nil {
			continue
		}
		if lock(f) == nil {
			_ = os.RemoveAll(dir) //nolint:gosec // as above; the next sweep tries again
		}
		_ = f.Close() // it was only looked at
	}
}

func mine(info os.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Getuid()
}
