//go:build !linux

package peercred

import (
	"syscall"

	"github.com/stint-dev/stint/attestor"
)

func read(syscall.RawConn) (attestor.Local, error) { return attestor.Local{}, ErrUnsupported }
