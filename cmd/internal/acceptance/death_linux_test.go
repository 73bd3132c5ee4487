package acceptance_test

import (
	"os/exec"
	"syscall"
)

// dieTogether makes a child end with the test, however the test ends.
func dieTogether(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
