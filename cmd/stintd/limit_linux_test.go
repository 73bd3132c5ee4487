package main

import (
	"errors"

	"golang.org/x/sys/unix"
)

// noLimit is none on the size of files.
const noLimit = unix.RLIM_INFINITY

// limitFiles keeps a process from writing to any file beyond a size, as a full disk or a quota does: EFBIG. It leaves one alone
// that has ended.
func limitFiles(pid int, bytes uint64) error {
	err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: bytes, Max: noLimit}, nil)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}
