package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/stint-dev/stint/attestor/source"
	"github.com/stint-dev/stint/broker/config"
	"github.com/stint-dev/stint/broker/policy"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/plugins"
)

// Exit statuses of check, by the worst finding.
const (
	exitBreaks  = 1
	exitWeakens = 3
)

// checkOptions are the flags of `stintd check`.
type checkOptions struct {
	config  string
	offline bool
	probe   bool
	json    bool
	output  string
	tokens  []string
	params  []string
	timeout time.Duration
	// progress takes what is said while something takes long.
	progress io.Writer
	// rolesKnown says that the resources are what the broker has.
	rolesKnown bool
	// cas are the embedded CAs to try, with --probe.
	cas heldCAs
}

func checkCommand() *cobra.Command {
	var o checkOptions
	cmd := &cobra.Command{
		Use:   "check --config FILE",
		Short: "Validate the configuration and the resources, connect to everything, and report all faults at once",
		Long: `Validate the configuration and the resources, then connect to the identity source and to each backend, and report what
breaks or weakens the promise, each with the command or line that mends it. Nothing is changed anywhere, unless --probe
issues and revokes one credential per role.

Exit status: 0 nothing found, 3 warnings only, 1 at least one fault.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			show, err := o.printer()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
			defer cancel()
			o.progress = cmd.ErrOrStderr()
			return report(cmd.OutOrStdout(), show, inspect(ctx, o))
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.config, "config", "/etc/stint/stint.hcl", "configuration file")
	f.BoolVar(&o.offline, "offline", false, "connect to nothing")
	f.StringArrayVar(&o.tokens, "vault-token-file", nil, "`[BACKEND=]FILE` with a Vault token that may read what serving must not; `stintd setup vault` prints its policy")
	f.BoolVar(&o.probe, "probe", false, "issue and revoke one credential per role, for real")
	f.StringArrayVar(&o.params, "param", nil, "`ROLE.NAME=VALUE` of a parameter, for --probe")
	f.StringVarP(&o.output, "output", "o", "text", "text or json")
	f.BoolVar(&o.json, "json", false, "the same as -o json")
	f.DurationVar(&o.timeout, "timeout", time.Minute, "how long connecting and trying may take in all")
	return cmd
}

// printer returns what prints the findings.
func (o checkOptions) printer() (func(io.Writer, []plugins.Finding) error, error) {
	switch {
	case o.json || o.output == "json":
		return printJSON, nil
	case o.output == "text":
		return printText, nil
	}
	return nil, &codeError{exitUsage, fmt.Errorf("-o %s: there are text and json", o.output)}
}

// inspect finds everything that it can, in the order in which an operator would mend it.
func inspect(ctx context.Context, o checkOptions) []plugins.Finding {
	cfg, err := config.Load(o.config, builtinNames()...)
	if err != nil {
		return faultsOf("configuration", err)
	}
	found := inspectMachine(ctx, cfg, o)
	var src *source.Source
	if !o.offline {
		within(o.progress, "identity", func() {
			var more []plugins.Finding
			src, more = inspectIdentity(ctx, cfg, o.config)
			found = append(found, more...)
		})
	}
	found = append(found, inspectBackends(ctx, cfg, src, o)...)
	if src != nil {
		if err := src.Close(); err != nil {
			found = append(found, faultsOf("identity", err)...)
		}
	}
	return found
}

// inspectBackends opens every backend in a scratch directory, so that no embedded CA is made or changed, and goes on to the
// roles. Without an identity, those that need one cannot be asked.
func inspectBackends(ctx context.Context, cfg *config.Config, src *source.Source, o checkOptions) []plugins.Finding {
	var found []plugins.Finding
	err := withScratch(func(dir string) {
		elsewhere := *cfg
		elsewhere.DataDir = dir
		if err := showCAs(cfg, &elsewhere); err != nil {
			found = append(found, faultsOf("backend", err)...)
		}
		s := surroundings{cfg: &elsewhere, logger: zap.NewNop()}
		if src != nil {
			s.jwt = src
		}
		backends, faults := openBackends(s)
		for _, err := range faults {
			found = append(found, faultsOf("backend", err)...)
		}
		for _, block := range cfg.Backends {
			if backends[block.ID()] == nil { // it is reported; its roles are not at fault
				backends[block.ID()] = standIn{kind: block.Type}
			}
		}
		set, more := inspectResources(cfg, backends)
		found = append(found, more...)
		if o.offline {
			return
		}
		o.rolesKnown = cfg.Resources != "" && !slices.ContainsFunc(more, func(f plugins.Finding) bool { return f.Severity == plugins.Breaks })
		var mute []string
		for _, block := range cfg.Backends {
			if src == nil && backends[block.ID()] != nil && needsIdentity(block) {
				mute = append(mute, block.ID())
			}
		}
		if o.probe {
			o.cas = holdCAs(cfg, healthOf(ctx, backends))
			defer o.cas.release()
		}
		found = append(found, askBackends(ctx, set, backends, mute, o)...)
	})
	if err != nil {
		found = append(found, faultsOf("backend", err)...)
	}
	return found
}

// withScratch gives do a directory that is gone afterwards.
func withScratch(do func(dir string)) error {
	dir, err := os.MkdirTemp("", "stint-check-")
	if err != nil {
		return fmt.Errorf("make a scratch directory: %w", err)
	}
	do(dir)
	return os.RemoveAll(dir)
}

// faultsOf makes one finding of each line of an error that holds several. The subject is its code, too.
func faultsOf(subject string, err error) []plugins.Finding {
	var out []plugins.Finding
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if line != "" {
			out = append(out, plugins.Finding{Severity: plugins.Breaks, Code: subject, Subject: subject, Problem: line, Remedy: remedyOf(subject)})
		}
	}
	return out
}

// remedyOf says what to do where the problem names file, line or key itself.
func remedyOf(subject string) string {
	switch subject {
	case "identity":
		return "see that what identity names is there, and that SPIRE has an entry for Stint: stintd setup spire"
	case "flags":
		return "stintd check --help"
	case "resources":
		return "see docs/resources.md"
	default:
		return "change the configuration, or put there what it names: docs/configuration.md"
	}
}

func inspectIdentity(ctx context.Context, cfg *config.Config, file string) (*source.Source, []plugins.Finding) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	src, _, err := openIdentity(ctx, cfg, zap.NewNop())
	if err != nil {
		return nil, faultsOf("identity", err)
	}
	var found []plugins.Finding
	if err = refuseDevelopmentCA(src.Authorities()); err != nil {
		found = append(found, faultsOf("identity", err)...)
	}
	svid, err := src.GetX509SVID()
	if err != nil { // serve may go on without; what takes the identity cannot be asked
		return nil, append(found, faultsOf("identity", errors.Join(err, src.Close()))...)
	}
	if len(svid.Certificates[0].DNSNames) == 0 {
		found = append(found, plugins.Finding{
			Severity: plugins.Weakens, Code: "svid-no-dns", Subject: "identity",
			Problem: svid.ID.String() + " has no DNS name: stock gRPC clients outside Go check names, not URIs",
			Remedy:  "spire-server entry update -entryID ID … -dns NAME; `stintd setup spire --config " + file + "` prints the whole entry",
		})
	}
	if _, err := cfg.Domains(src.ID().TrustDomain()); err != nil {
		found = append(found, faultsOf("identity", err)...)
	}
	return src, found
}

// inspectResources compiles what the resources folder holds.
func inspectResources(cfg *config.Config, backends map[string]plugins.Backend) (resource.Set, []plugins.Finding) {
	if cfg.Resources == "" {
		return resource.Set{}, []plugins.Finding{resourceWarning("roles-not-known",
			"roles are applied over the API, and check reads files: nothing was looked at that depends on them",
			`resources = "DIR" in a copy of the configuration, with the files that were applied`)}
	}
	files, err := readResources(cfg.Resources)
	if err != nil {
		return resource.Set{}, faultsOf("resources", err)
	}
	set, problems := resource.Parse(files, backends)
	var found []plugins.Finding
	if len(problems) == 0 {
		var engine *policy.Engine
		if engine, problems = policy.Compile(set); engine != nil {
			for _, text := range set.Warnings() {
				found = append(found, resourceWarning("resource-warning", text, "see docs/resources.md"))
			}
			for _, w := range engine.Warnings() {
				found = append(found, policyWarning(w))
			}
		}
	}
	for _, p := range problems {
		found = append(found, plugins.Finding{
			Severity: plugins.Breaks, Code: "resources", Subject: "resources", Problem: p.String(), Remedy: "mend " + p.At.String(),
		})
	}
	for _, p := range set.Profiles() {
		if cause := cfg.CheckProfile(p.Name, p.Agents...); cause != nil {
			found = append(found, faultsOf("resources", cause)...)
		}
	}
	return set, found
}

func resourceWarning(code, problem, remedy string) plugins.Finding {
	return plugins.Finding{Severity: plugins.Weakens, Code: code, Subject: "resources", Problem: problem, Remedy: remedy}
}

// policyWarning gives a warning about roles and policies its code and its remedy.
func policyWarning(w policy.Warning) plugins.Finding {
	switch w.Kind {
	case policy.RoleUnlisted:
		return resourceWarning("role-unlisted", w.String(),
			fmt.Sprintf("- {name: %s} under spec.roles of a profile, or remove the role at %s", w.Role, w.At))
	case policy.RoleNeverPermitted:
		remedy := fmt.Sprintf(`permit (principal in Stint::Profile::%q, action == Stint::Action::"issue", resource == Stint::Role::%q);`, w.Profile, w.Role)
		if len(w.Forbids) > 0 {
			remedy = fmt.Sprintf("change %s, or take role %s out of profile %s at %s", strings.Join(w.Forbids, ", "), w.Role, w.Profile, w.At)
		}
		return resourceWarning("role-never-permitted", w.String(), remedy)
	case policy.UnusedBackend:
	}
	return resourceWarning("resource-warning", w.String(), "see docs/resources.md")
}
