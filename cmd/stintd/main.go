// Command stintd is the broker: a daemon that hands agents credentials for one task, and ends them with it.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // from then on a second signal ends the process at once
	err := errors.Join(keepFromDumps(), forgetVault())
	if err == nil {
		err = newRoot().ExecuteContext(ctx)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "stintd:", err)
		os.Exit(exitCode(err))
	}
}
