// Package cli is the command tree of stint: what each command asks the broker, and how it tells the answer. Data goes to
// standard output, everything else to standard error.
package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/cmd/stint/internal/render"
	"github.com/stint-dev/stint/sdk/agent"
)

// Environment variables of the CLI besides those of the SDK.
const (
	envAdminSocket = "STINT_ADMIN_SOCKET"
	envHTTPAddr    = "STINT_HTTP_ADDR"
	envNoColor     = "NO_COLOR"
)

const (
	defaultTimeout = 30 * time.Second
	progressAfter  = 2 * time.Second
)

// app is one run of the program.
type app struct {
	version string
	stdin   io.Reader
	stdout  io.Writer
	stderr  io.Writer
	flags   flags
}

// flags are those that every command has.
type flags struct {
	addr        string
	serverID    string
	spiffeID    string
	adminSocket string
	timeout     time.Duration
	output      string
}

// Main runs stint with arguments and returns its exit code.
func Main(ctx context.Context, version string, args []string) int {
	a := &app{version: version, stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	root := a.root() //nolint:contextcheck // cobra hands the context to the command
	strict(root)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return codeOK
	}
	return a.report(err)
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "stint",
		Short: "Credentials for a task, and only for it",
		Long: "stint talks to a Stint broker: it declares tasks, gets credentials for them, runs commands with these, and\n" +
			"shows and administers what there is. It proves who it is with the SVID of SPIFFE_ENDPOINT_SOCKET.",
		SilenceUsage: true, SilenceErrors: true, Version: a.version,
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.checkFlags() },
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	f := root.PersistentFlags()
	f.StringVar(&a.flags.addr, "addr", "", "the broker, host:port ($STINT_ADDR)")
	f.StringVar(&a.flags.serverID, "server-id", "", "the broker's SPIFFE ID ($STINT_SERVER_ID; default spiffe://<own trust domain>/stint)")
	f.StringVar(&a.flags.spiffeID, "spiffe-id", "", "which SVID of the Workload API to use ($STINT_SPIFFE_ID; default the first)")
	f.StringVar(&a.flags.adminSocket, "admin-socket", "",
		"use the broker's admin socket, unix:///path, instead of an SVID ($"+envAdminSocket+")")
	f.DurationVar(&a.flags.timeout, "timeout", defaultTimeout, "how long one call may take")
	f.StringVarP(&a.flags.output, "output", "o", string(render.FormatTable), "table, json or yaml")
	root.AddCommand(
		a.whoami(), a.roles(), a.task(), a.credential(), a.lease(), a.run(), a.stop(), a.agent(), a.apply(), a.get(), a.audit(), a.whois(), a.reconcile(),
		a.restore(), a.trust(), a.versionCommand(),
	)
	return root
}

// checkFlags also settles what comes from the environment: a flag comes before any variable.
func (a *app) checkFlags() error {
	if a.flags.adminSocket == "" && a.flags.addr == "" {
		a.flags.adminSocket = os.Getenv(envAdminSocket)
	}
	if a.flags.adminSocket != "" && a.flags.addr != "" {
		return usage("--addr and --admin-socket exclude each other")
	}
	switch render.Format(a.flags.output) {
	case render.FormatTable, render.FormatJSON, render.FormatYAML, render.FormatWide:
	default:
		return usage("--output is table, json or yaml, not %q", a.flags.output)
	}
	if a.flags.timeout <= 0 {
		return usage("--timeout must be positive")
	}
	return nil
}

// format returns how data is to be written, and whether that is for machines.
func (a *app) format() (f render.Format, data bool) {
	f = render.Format(a.flags.output)
	return f, f == render.FormatJSON || f == render.FormatYAML
}

// session is a connection and what one command may take.
type session struct {
	*agent.Client

	app *app
}

// with connects, runs f, and disconnects. Signals end what f waits for.
func (a *app) with(f func(ctx context.Context, s session, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, cancel := context.WithCancel(cmd.Context())
		defer cancel()
		signals := listen(cancel)
		defer signals.close()
		return signals.explain(a.connect(ctx, func(ctx context.Context, s session) error { return f(ctx, s, args) }))
	}
}

// connect is with for commands that look after signals themselves.
func (a *app) connect(ctx context.Context, f func(ctx context.Context, s session) error) error {
	dial, cancel := a.call(ctx)
	addr := a.flags.addr
	if addr == "" {
		addr = a.flags.adminSocket
	}
	client, err := agent.New(dial, agent.WithAddr(addr), agent.WithServerID(a.flags.serverID), agent.WithSPIFFEID(a.flags.spiffeID))
	cancel()
	if err != nil {
		return err
	}
	err = f(ctx, session{Client: client, app: a})
	return errors.Join(err, client.Close())
}

// call bounds one call, and says so once it has taken more than two seconds.
func (a *app) call(ctx context.Context) (context.Context, context.CancelFunc) {
	return a.bounded(ctx, a.flags.timeout)
}

// bounded is call with a limit of its own.
func (a *app) bounded(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	slow := time.AfterFunc(progressAfter, func() { a.sayf("waiting for an answer, at most %s", render.Short(limit)) })
	return ctx, func() {
		slow.Stop()
		cancel()
	}
}

// show writes an answer as data, or with table for people.
func (a *app) show(value any, table func(w io.Writer) error) error {
	if format, data := a.format(); data {
		return render.Write(a.stdout, format, value)
	}
	return table(a.stdout)
}
