package main

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// keepFromDumps keeps what is in memory, secrets among it, out of core dumps: of this process for good, and of its children
// by their limit, which nothing raises again.
func keepFromDumps() error {
	return errors.Join(forbidDumps(), limitDumps())
}

// limitDumps is not enough where the kernel hands dumps to a program (core_pattern with a pipe): it asks for no limit then.
func limitDumps() error {
	var limit unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_CORE, &limit)
	if err == nil && limit != (unix.Rlimit{}) { // a unit that sets it may also forbid to
		err = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	}
	if err != nil {
		return fmt.Errorf("limit core dumps: %w", err)
	}
	return nil
}
