package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/config"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault"
)

func setupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Print what Vault or SPIRE needs for a configuration; nothing is changed",
		Long: `Print, as a shell script, what Vault or SPIRE needs for a configuration and its resources. Nothing is connected to, and
nothing is changed: read the script, and run it as an administrator of the system that it is for.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(setupVaultCommand(), setupSPIRECommand())
	return cmd
}

// setupOptions are the flags that both share.
type setupOptions struct {
	config    string
	resources string
	spiffeID  string
}

func (o *setupOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.config, "config", "/etc/stint/stint.hcl", "configuration file")
	f.StringVar(&o.resources, "resources", "", "`DIR` with roles and profiles; the configuration's unless given")
	f.StringVar(&o.spiffeID, "spiffe-id", "", "Stint's own SPIFFE ID, where the configuration does not say it")
}

// setupPlan is what a set-up is made of.
type setupPlan struct {
	cfg      *config.Config
	backends map[string]plugins.Backend
	set      resource.Set
	subject  string // Stint's own SPIFFE ID
}

// load reads configuration and resources, and connects to nothing.
func (o *setupOptions) load() (setupPlan, error) {
	cfg, err := config.Load(o.config, builtinNames()...)
	if err != nil {
		return setupPlan{}, err
	}
	if o.resources != "" {
		cfg.Resources = o.resources
	}
	backends, faults := setupBackends(cfg)
	p := setupPlan{cfg: cfg, backends: backends, subject: o.spiffeID}
	set, found := inspectResources(cfg, backends)
	for _, f := range found {
		if f.Severity == plugins.Breaks {
			faults = append(faults, errors.New(f.Problem))
		}
	}
	p.set = set
	if p.subject == "" {
		if p.subject, err = ownID(cfg); err != nil {
			faults = append(faults, err)
		}
	}
	return p, errors.Join(faults...)
}

// ownID returns Stint's own SPIFFE ID as far as the configuration knows it.
func ownID(cfg *config.Config) (string, error) {
	if !cfg.Identity.SPIFFEID.IsZero() {
		return cfg.Identity.SPIFFEID.String(), nil
	}
	if cfg.Identity.CertFile != "" {
		if svid, err := x509svid.Load(cfg.Identity.CertFile, cfg.Identity.KeyFile); err == nil {
			return svid.ID.String(), nil
		}
	}
	return "", errors.New("the configuration does not say stint's own SPIFFE ID: set identity.spiffe_id, or give --spiffe-id")
}

func setupVaultCommand() *cobra.Command {
	var o setupOptions
	var backend, discovery string
	cmd := &cobra.Command{
		Use:   "vault --config FILE",
		Short: "Print the policies, token role and login that a Vault needs, as a shell script",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plan, err := o.load()
			if err != nil {
				return err
			}
			text, err := plan.vault(backend, discovery)
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), text)
			return err
		},
	}
	o.flags(cmd)
	cmd.Flags().StringVar(&backend, "backend", "", "`NAME` of the backend, such as vault/prod, where there are several")
	cmd.Flags().StringVar(&discovery, "oidc-discovery-url", "", "`URL` of the trust domain's OIDC discovery provider, from which Vault takes its keys")
	return cmd
}

// vault returns the script for one Vault.
func (p setupPlan) vault(name, discovery string) (string, error) {
	vaults := map[string]*vault.Backend{}
	for id, b := range p.backends {
		if v, ok := b.(*vault.Backend); ok && (name == "" || name == id) {
			vaults[id] = v
		}
	}
	known := slices.Sorted(maps.Keys(vaults))
	switch {
	case len(known) == 0 && name != "":
		return "", &codeError{exitUsage, fmt.Errorf("backend %s is not configured as a Vault", name)}
	case len(known) == 0:
		return "", &codeError{exitUsage, errors.New(`the configuration has no backend "vault"`)}
	case len(known) > 1:
		return "", &codeError{exitUsage, errors.New("there are several: give --backend " + strings.Join(known, ", or "))}
	}
	var roles []plugins.Role
	for _, r := range p.set.Roles() {
		if r.Backend == known[0] {
			roles = append(roles, r.Plugin)
		}
	}
	return vaults[known[0]].SetupScript(vault.SetupOptions{Subject: p.subject, DiscoveryURL: discovery}, roles)
}

// setupBackends opens the Vaults, which connects to nothing, and puts a stand-in in the place of others: their keys may not
// be there yet.
func setupBackends(cfg *config.Config) (map[string]plugins.Backend, []error) {
	only := *cfg
	only.Backends = slices.DeleteFunc(slices.Clone(cfg.Backends), func(b config.Backend) bool { return b.Type != vault.Type })
	backends, faults := openBackends(surroundings{cfg: &only, logger: zap.NewNop()})
	for _, block := range cfg.Backends {
		if block.Type != vault.Type {
			backends[block.ID()] = standIn{kind: block.Type}
		}
	}
	return backends, faults
}

// standIn takes any role of its kind of backend, and issues nothing.
type standIn struct{ kind string }

func (s standIn) Descriptor() plugins.Descriptor {
	if s.kind == vault.Type {
		return plugins.Descriptor{Type: vault.Type, Section: "vault"}
	}
	return plugins.Descriptor{Type: s.kind, Section: "certificate", HandleIsLeaseID: true}
}

func (s standIn) CheckRole(plugins.Role) (plugins.RoleInfo, error) {
	return plugins.RoleInfo{Ends: plugins.EndsRevocable, NeedsCSR: s.kind != vault.Type, Exposure: plugins.Exposure{Bounded: true}}, nil
}

func (standIn) Issue(context.Context, plugins.Request) (plugins.Credential, error) {
	return plugins.Credential{}, fmt.Errorf("%w: %w", plugins.ErrUnavailable, plugins.ErrNotIssued)
}

func (standIn) Revoke(context.Context, plugins.Held) (plugins.Ending, error) {
	return plugins.Ending{}, plugins.ErrUnavailable
}
