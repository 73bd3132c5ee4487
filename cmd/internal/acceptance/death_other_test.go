//go:build !linux

package acceptance_test

import "os/exec"

// dieTogether is possible on Linux only; elsewhere a child ends with the test's cleanup.
func dieTogether(*exec.Cmd) {}
