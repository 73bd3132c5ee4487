//go:build !linux

package servertest

import "syscall"

// attributes leaves the process in the test's group, so that Ctrl-C reaches it. Only Linux can tie its life to the
// test process.
func attributes(credential *syscall.Credential, _ syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: credential}
}
