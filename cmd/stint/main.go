// Command stint is the client of Stint for agents and operators: it declares tasks, gets credentials, runs commands with
// them, and administers a broker.
package main

import (
	"context"
	"os"

	"github.com/stint-dev/stint/cmd/stint/internal/cli"
)

// version is set by the linker.
var version = "devel"

func main() {
	os.Exit(cli.Main(context.Background(), version, os.Args[1:]))
}
