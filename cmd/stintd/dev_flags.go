package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap/zapcore"

	"github.com/stint-dev/stint/broker/config"
)

// devOptions are the flags of `stintd dev`.
type devOptions struct {
	dataDir   string
	reset     bool
	grpc      string
	http      string
	noVault   bool
	needVault bool // fail where there is none
	vaultAddr string
	logLevel  string
	svidTTL   time.Duration
}

func devCommand() *cobra.Command {
	var o devOptions
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run everything in one process, for development: identities, CA, ledger, and a Vault where there is one",
		Long: `Run a broker with a trust domain of its own, an embedded CA, a ledger, and ready-made identities, roles and a profile.
A development Vault is started when a vault binary is on PATH or in .bin, or VAULT_BIN names one. A Vault that the environment names (VAULT_ADDR)
is never touched, unless --vault-addr says so; VAULT_TOKEN must then hold a token that may set it up.
Ctrl-C ends every task, then stops.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return &codeError{exitUsage, err}
			}
			return dev(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.dataDir, "data-dir", ".stint", "where keys, CA and ledger are kept")
	f.BoolVar(&o.reset, "reset", false, "start over: remove what --data-dir holds")
	f.StringVar(&o.grpc, "listen", "127.0.0.1:7846", "address for agents (mTLS)")
	f.StringVar(&o.http, "http", "127.0.0.1:7847", "address for health, metrics, bundle and CRL")
	f.BoolVar(&o.noVault, "no-vault", false, "start no development Vault")
	f.StringVar(&o.vaultAddr, "vault-addr", "", "use this Vault; it is set up with VAULT_TOKEN")
	f.StringVar(&o.logLevel, "log-level", "warn", "debug, info, warn or error")
	f.DurationVar(&o.svidTTL, "svid-ttl", 10*time.Minute, "lifetime of the identities' X.509-SVIDs")
	return cmd
}

// check names every flag that is wrong, as the configuration made of them could not.
func (o devOptions) check() error {
	var faults []error
	for _, f := range []struct{ name, addr string }{{"listen", o.grpc}, {"http", o.http}} {
		_, port, err := net.SplitHostPort(f.addr)
		if err == nil {
			_, err = strconv.ParseUint(port, 10, 16)
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("--%s %q: write host:port, as in 127.0.0.1:7846", f.name, f.addr))
		}
	}
	if _, err := zapcore.ParseLevel(o.logLevel); err != nil {
		faults = append(faults, fmt.Errorf("--log-level %q: there are debug, info, warn and error", o.logLevel))
	}
	if o.svidTTL <= 0 {
		faults = append(faults, fmt.Errorf("--svid-ttl %s: write a duration above zero, as in 10m", o.svidTTL))
	}
	if u, err := url.Parse(o.vaultAddr); o.vaultAddr != "" && (err != nil || u.Host == "") {
		faults = append(faults, fmt.Errorf("--vault-addr %q: write a URL, as in http://127.0.0.1:8200", o.vaultAddr))
	}
	return errors.Join(faults...)
}

// connectionAge is when a connection is recycled. Identities are renewed at half their life, so a new connection's SVID has at
// least half of its own left: well under that, and no stock client meets the end of one.
func (o devOptions) connectionAge() time.Duration {
	const part = 5
	return min(max(o.svidTTL/part, time.Second), config.Default().Limits.ConnectionMaxAge)
}
