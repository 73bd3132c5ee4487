package servertest

import "syscall"

// attributes makes the process end with the test process, and keeps the terminal's Ctrl-C for the test process alone.
func attributes(credential *syscall.Credential, death syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: credential, Setpgid: true, Pdeathsig: death}
}
