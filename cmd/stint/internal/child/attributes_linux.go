package child

import "syscall"

// attributes asks the kernel to end the command with SIGTERM should we be killed: its credentials end soon after.
func attributes(group bool) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: group, Pdeathsig: syscall.SIGTERM}
}
