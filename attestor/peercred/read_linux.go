package peercred

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/stint-dev/stint/attestor"
)

// read asks the kernel with SO_PEERCRED.
func read(conn syscall.RawConn) (attestor.Local, error) {
	var cred *unix.Ucred
	var credErr error
	err := conn.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err == nil {
		err = credErr
	}
	if err != nil {
		return attestor.Local{}, fmt.Errorf("peer credential: %w", err)
	}
	return attestor.Local{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid}, nil
}
