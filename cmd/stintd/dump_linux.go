package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// forbidDumps makes the kernel write no dump of this process, wherever dumps go, and refuse its memory to other processes of
// the same user (prctl(2), PR_SET_DUMPABLE).
func forbidDumps() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	return nil
}
