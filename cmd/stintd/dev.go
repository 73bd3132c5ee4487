package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/stint-dev/stint/attestor/devdomain"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/config"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/vault"
)

const devTrustDomain = "dev.stint.local"

func dev(ctx context.Context, o devOptions, out io.Writer) (err error) {
	started := time.Now()
	d, err := openDev(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	err = d.run(ctx, func(ctx context.Context) error {
		if werr := d.writeEnv(); werr != nil {
			return werr
		}
		d.banner(out, time.Since(started))
		<-ctx.Done()
		_, werr := fmt.Fprintln(out, "\nEnding every task …")
		return werr
	})
	if err != nil {
		return err
	}
	if left := d.house.left; left > 0 {
		return fmt.Errorf("%d tasks are not proven ended; `stintd dev` with the same --data-dir goes on with them%s", left, d.lostVault())
	}
	_, err = fmt.Fprintln(out, "Stopped: no task is open.")
	return err
}

// lostVault says what can never be proven: the end of leases of a development Vault that is gone, as after kill -9.
func (d *devBroker) lostVault() string {
	if d.vault == nil || d.vault.binary == "" {
		return ""
	}
	return "\nleases of a development Vault can never be proven ended once it is gone: for those, start over with --reset"
}

// devBroker is a broker for development and everything around it.
type devBroker struct {
	options devOptions
	dir     string // absolute
	fresh   bool
	domain  *devdomain.Domain
	vault   *devVault // nil where there is none
	cfg     *config.Config
	house   *house
	files   []resource.File
	logger  *zap.Logger
}

// openDev prepares everything; nothing serves yet.
func openDev(ctx context.Context, o devOptions) (*devBroker, error) {
	d := &devBroker{options: o}
	var err error
	if d.logger, _, err = newLogger(config.Log{Level: o.logLevel, Format: "console"}); err != nil {
		return nil, err
	}
	if err = d.makeDir(); err != nil {
		return nil, err
	}
	if err = d.openDomain(ctx); err != nil {
		return nil, err
	}
	if err = d.openVault(ctx); err != nil {
		return nil, errors.Join(err, d.close())
	}
	if d.cfg, err = d.config(); err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// makeDir makes the data directory, private and ignored by git.
func (d *devBroker) makeDir() error {
	var err error
	if d.dir, err = filepath.Abs(d.options.dataDir); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	_, err = os.Stat(filepath.Join(d.dir, "broker"))
	d.fresh = os.IsNotExist(err) || d.options.reset
	if d.options.reset {
		if err := d.reset(); err != nil {
			return fmt.Errorf("reset: %w", err)
		}
	}
	for _, part := range []string{"", "keys", "trust"} {
		if err := os.MkdirAll(filepath.Join(d.dir, part), 0o700); err != nil {
			return fmt.Errorf("data directory: %w", err)
		}
	}
	return os.WriteFile(filepath.Join(d.dir, ".gitignore"), []byte("*\n"), 0o600)
}

// reset removes what an earlier run left, unless that one still runs: its ledger knows what is to be revoked.
func (d *devBroker) reset() error {
	lock, err := os.OpenFile(filepath.Join(d.dir, "broker", "lock"), os.O_RDWR, 0)
	if err == nil {
		defer lock.Close()
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return fmt.Errorf("%s is in use by a `stintd dev` that runs; end that one first", d.dir)
	}
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	for _, part := range []string{"broker", "trust", "keys", "env", "audit.jsonl", "checkpoints.log"} {
		if err := os.RemoveAll(filepath.Join(d.dir, part)); err != nil {
			return err
		}
	}
	return nil
}

// identities are the ready-made ones, by the name of their socket.
func identities() []devdomain.Workload {
	td := spiffeid.RequireTrustDomainFromString(devTrustDomain)
	id := func(path string) spiffeid.ID { return spiffeid.RequireFromPath(td, path) }
	return []devdomain.Workload{
		{Name: "stint", ID: id("/stint"), DNSNames: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}},
		{Name: "agent", ID: id("/agent/agent")},
		{Name: "agent2", ID: id("/agent/agent2")},
		{Name: "operator", ID: id("/ops/operator")},
	}
}

func (d *devBroker) openDomain(ctx context.Context) error {
	domain, err := devdomain.New(devdomain.Config{
		TrustDomain: spiffeid.RequireTrustDomainFromString(devTrustDomain), StateDir: filepath.Join(d.dir, "trust"),
		SVIDTTL: d.options.svidTTL, Logger: d.logger.Named("devdomain"),
	})
	if err != nil {
		return err
	}
	d.domain = domain
	for _, w := range identities() {
		if _, err := domain.Add(ctx, w); err != nil {
			return errors.Join(err, domain.Close())
		}
	}
	return nil
}

// openVault starts a development Vault, or takes the one that was named.
func (d *devBroker) openVault(ctx context.Context) error {
	switch {
	case d.options.vaultAddr != "":
		token := os.Getenv("VAULT_TOKEN")
		if token == "" {
			return errors.New("--vault-addr needs VAULT_TOKEN: a token that may set up mounts, policies and auth methods there")
		}
		d.vault = &devVault{addr: d.options.vaultAddr, token: secret.FromString(token)}
		return nil
	case d.options.noVault:
		return nil
	}
	binary, err := findVault()
	if err != nil {
		return err
	}
	if binary == "" {
		if d.options.needVault {
			return errors.New("there is no vault: " + whereVault)
		}
		return nil
	}
	d.vault, err = startVault(ctx, binary)
	return err
}

// config is written as an operator would write it, and read by the same code.
func (d *devBroker) config() (*config.Config, error) {
	text := fmt.Sprintf(`
data_dir = %q
listen {
  grpc  = %q
  http  = %q
  admin = "unix://%s/admin.sock"
}
identity { workload_api = %q }
admins "spiffe://%s/ops/*" { role = "admin" }
task_trust_domain = "tasks.%s"
audit {
  origin      = "%s/audit"
  key_file    = %q
  file        = %q
  checkpoints = %q
}
ledger "sqlite" { stop_issuing_below = "64MiB" }
limits { connection_max_age = %q }
backend "stepca" "dev" { crl_url = "http://%s/crl.der" }
`, filepath.Join(d.dir, "broker"), d.options.grpc, d.options.http, d.domain.Dir(), d.domain.Addr("stint"), devTrustDomain,
		devTrustDomain, devTrustDomain, filepath.Join(d.dir, "keys", "audit.key"), filepath.Join(d.dir, "audit.jsonl"),
		filepath.Join(d.dir, "checkpoints.log"), d.options.connectionAge().String(), d.options.http)
	if d.vault != nil {
		text += fmt.Sprintf(`
backend "vault" "dev" {
  address = %q
  auth "jwt" {
    role     = "stint"
    audience = %q
  }
}
`, d.vault.addr, d.vault.addr)
	}
	return config.Parse("stintd dev", []byte(text), builtinNames()...)
}

// resources are the ready-made ones.
func (d *devBroker) resources() []resource.File {
	text, more := devResources, ""
	if d.vault != nil {
		text += devVaultRole
		more = "    - {name: build-host}\n"
	}
	return []resource.File{{Name: "stintd dev", YAML: text + fmt.Sprintf(devProfile, more), Source: "stintd dev"}}
}

// run serves identities and the broker until ctx is done, with ready in between.
func (d *devBroker) run(ctx context.Context, ready func(context.Context) error) error {
	base, stopBase := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBase()
	ground, groundCtx := errgroup.WithContext(base)
	ground.Go(func() error { return d.domain.Run(groundCtx) })
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	detach := context.AfterFunc(groundCtx, stop)
	defer detach()
	err := d.serve(ctx, ready)
	stopBase()
	return errors.Join(err, ground.Wait())
}

func (d *devBroker) serve(ctx context.Context, ready func(context.Context) error) error {
	src, _, err := openIdentity(ctx, d.cfg, d.logger)
	if err != nil {
		return err
	}
	k, err := makeKeys(d.cfg.Audit.KeyFile, d.cfg.Audit.Origin)
	if err != nil {
		return err
	}
	backends, faults := openBackends(surroundings{cfg: d.cfg, jwt: src, logger: d.logger})
	if len(faults) > 0 {
		return errors.Join(faults...)
	}
	d.files = d.resources()
	if err = d.prepareVault(ctx, backends); err != nil {
		return err
	}
	d.house, err = build(ctx, blueprint{
		cfg: d.cfg, source: src, keys: k, backends: inOrder(d.cfg, backends), logger: d.logger, endTasks: true,
	})
	if err != nil {
		return err
	}
	err = d.house.run(ctx, func(ctx context.Context) error {
		if _, aerr := d.house.catalog.Apply(ctx, broker.Caller{}, broker.Apply{Files: d.files}); aerr != nil {
			return aerr
		}
		return ready(ctx)
	})
	if d.vault == nil && fault.ReasonOf(err) == fault.ResourceInvalid {
		return fmt.Errorf("%w\nthis data directory was used with a Vault, and now there is none: start one, or start over with --reset", err)
	}
	return err
}

// prepareVault sets the development Vault up for the ready-made roles.
func (d *devBroker) prepareVault(ctx context.Context, backends map[string]plugins.Backend) error {
	if d.vault == nil {
		return nil
	}
	set, problems := resource.Parse(d.files, backends)
	if len(problems) > 0 {
		return fmt.Errorf("ready-made resources: %v", problems)
	}
	var roles []plugins.Role
	for _, r := range set.Roles() {
		if r.Backend == "vault/dev" {
			roles = append(roles, r.Plugin)
		}
	}
	var jwtKeys []any
	for _, key := range d.domain.Bundle().JWTAuthorities() {
		jwtKeys = append(jwtKeys, key)
	}
	own := "spiffe://" + devTrustDomain + "/stint"
	return d.vault.prepare(ctx, vault.Config{Instance: "vault/dev", Address: d.vault.addr}, roles, own, jwtKeys)
}

// close ends what openDev started.
func (d *devBroker) close() error {
	return errors.Join(d.vault.stop(), d.domain.Close())
}
