package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// writeEnv writes what a shell needs to be the agent "agent".
func (d *devBroker) writeEnv() error {
	text := fmt.Sprintf(`export STINT_ADDR=%s
export STINT_SERVER_ID=spiffe://%s/stint
export STINT_HTTP_ADDR=http://%s
export SPIFFE_ENDPOINT_SOCKET=%s
`, d.cfg.Listen.GRPC, devTrustDomain, d.cfg.Listen.HTTP, d.domain.Addr("agent"))
	if err := os.WriteFile(filepath.Join(d.dir, "env"), []byte(text), 0o600); err != nil {
		return fmt.Errorf("write env: %w", err)
	}
	return nil
}

// banner says what runs, where, and what to try.
func (d *devBroker) banner(out io.Writer, took time.Duration) {
	var b strings.Builder
	state := "kept from last time; `stintd dev --reset` starts over"
	if d.fresh {
		state = "fresh; `stintd dev --reset` starts over"
	}
	fmt.Fprintf(&b, "Stint %s  DEVELOPMENT MODE: who can open a socket below is that agent. Keys lie unencrypted. Not for production.\n", version)
	fmt.Fprintf(&b, "  broker      %s   spiffe://%s/stint        status  http://%s/readyz\n", d.cfg.Listen.GRPC, devTrustDomain, d.cfg.Listen.HTTP)
	fmt.Fprintf(&b, "  data        %s  (%s)\n", d.dir, state)
	fmt.Fprintf(&b, "  backends    stepca/dev  embedded CA, CRL at http://%s/crl.pem\n", d.cfg.Listen.HTTP)
	fmt.Fprintf(&b, "              vault/dev   %s\n", d.vaultLine())
	names := make([]string, 0, len(identities()))
	for _, w := range identities() {
		if w.Name != "stint" {
			names = append(names, w.Name)
		}
	}
	fmt.Fprintf(&b, "  identities  %s       %s/<name>.sock\n", strings.Join(names, ", "), d.domain.Dir())
	fmt.Fprintf(&b, `Try, in another terminal:
  source %s               # STINT_ADDR, STINT_SERVER_ID, SPIFFE_ENDPOINT_SOCKET of "agent"
  stint whoami                                  # who am I, what may I ask for
  stint run --purpose try-it --role web-client -- sh -c 'openssl x509 -in $CERT -noout -subject -enddate'
  stint run --purpose try-it --role payroll-db -- true    # denied, and why
Ready in %.1f s. Ctrl-C ends every task, then stops.
`, filepath.Join(d.dir, "env"), took.Seconds())
	_, _ = io.WriteString(out, b.String()) // a closed terminal is no reason to stop
}

func (d *devBroker) vaultLine() string {
	note := ""
	if os.Getenv("VAULT_ADDR") != "" && d.options.vaultAddr == "" {
		note = "   (VAULT_ADDR is set and was NOT touched; --vault-addr uses it)"
	}
	switch {
	case d.vault == nil && d.options.noVault:
		return "none (--no-vault)" + note
	case d.vault == nil:
		return "none: " + whereVault + note
	case d.vault.binary == "":
		return "using " + d.vault.addr
	default:
		return "started " + d.vault.binary + " -dev on " + strings.TrimPrefix(d.vault.addr, "http://") + note
	}
}
