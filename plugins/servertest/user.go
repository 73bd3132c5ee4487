package servertest

import (
	"fmt"
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// unprivileged returns a user of the system for a server that refuses to run as root, where the test does; else nil.
func unprivileged(name string) (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil //nolint:nilnil // nil is syscall's own word for the present user
	}
	account, err := user.Lookup(name)
	if err != nil {
		return nil, fmt.Errorf("the server does not run as root, and there is no user for it: %w", err)
	}
	uid, err := strconv.ParseUint(account.Uid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("read uid of %s: %w", name, err)
	}
	gid, err := strconv.ParseUint(account.Gid, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("read gid of %s: %w", name, err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// handOver makes files the server's own.
func handOver(to *syscall.Credential, paths ...string) error {
	if to == nil {
		return nil
	}
	for _, path := range paths {
		if err := os.Chown(path, int(to.Uid), int(to.Gid)); err != nil {
			return fmt.Errorf("give files to the server: %w", err)
		}
	}
	return nil
}
