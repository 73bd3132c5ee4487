package child

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// hasTerminal says whether there is a controlling terminal, and whether its keys signal our process group now.
func hasTerminal() (controlled, foreground bool) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return false, false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return true, err == nil && group == syscall.Getpgrp()
}
