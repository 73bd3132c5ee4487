package main

import (
	"context"
	"encoding/json"
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
	json    bool
	timeout time.Duration
}

func checkCommand() *cobra.Command {
	var o checkOptions
	cmd := &cobra.Command{
		Use:   "check --config FILE",
		Short: "Validate the configuration and the resources, connect to everything, and report all faults at once",
		Long: `Validate the configuration and the resources, then connect to the identity source and to each backend. Nothing is
changed anywhere. Exit status: 0 nothing found, 3 warnings only, 1 at least one fault.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
			defer cancel()
			show := printText
			if o.json {
				show = printJSON
			}
			return report(cmd.OutOrStdout(), show, inspect(ctx, o))
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.config, "config", "/etc/stint/stint.hcl", "configuration file")
	f.BoolVar(&o.offline, "offline", false, "connect to nothing")
	f.BoolVar(&o.json, "json", false, "print the findings as JSON")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "how long connecting may take in all")
	return cmd
}

// inspect finds everything that it can, in the order in which an operator would mend it.
func inspect(ctx context.Context, o checkOptions) []plugins.Finding {
	cfg, err := config.Load(o.config, builtinNames()...)
	if err != nil {
		return faultsOf("configuration", err)
	}
	var found []plugins.Finding
	var src *source.Source
	if !o.offline {
		var more []plugins.Finding
		src, more = inspectIdentity(ctx, cfg)
		found = append(found, more...)
		if _, err := openKeys(cfg.Audit.KeyFile, cfg.Audit.Origin); err != nil {
			found = append(found, plugins.Finding{
				Severity: plugins.Breaks, Subject: "audit key", Problem: err.Error(),
				Remedy: fmt.Sprintf("stintd audit key --origin %s --file %s", cfg.Audit.Origin, cfg.Audit.KeyFile),
			})
		}
	}
	found = append(found, inspectBackends(ctx, cfg, src)...)
	if src != nil {
		if err := src.Close(); err != nil {
			found = append(found, faultsOf("identity", err)...)
		}
	}
	return found
}

// inspectBackends opens every backend in a scratch directory, so that no embedded CA is made or touched, and goes on to the
// roles. Without an identity, backends cannot be asked.
func inspectBackends(ctx context.Context, cfg *config.Config, src *source.Source) []plugins.Finding {
	scratch, err := os.MkdirTemp("", "stint-check-")
	if err != nil {
		return faultsOf("backend", err)
	}
	elsewhere := *cfg
	elsewhere.DataDir = scratch
	s := surroundings{cfg: &elsewhere, logger: zap.NewNop()}
	if src != nil {
		s.jwt = src
	}
	backends, faults := openBackends(s)
	var found []plugins.Finding
	for _, err := range faults {
		found = append(found, faultsOf("backend", err)...)
	}
	set, more := inspectResources(cfg, backends)
	found = append(found, more...)
	if src != nil {
		found = append(found, askBackends(ctx, set, backends)...)
	}
	if err := os.RemoveAll(scratch); err != nil {
		found = append(found, faultsOf("backend", err)...)
	}
	for i, f := range found { // what is said of the scratch directory is meant of the real one
		found[i].Problem = strings.ReplaceAll(f.Problem, scratch, cfg.DataDir)
		found[i].Remedy = strings.ReplaceAll(f.Remedy, scratch, cfg.DataDir)
	}
	return found
}

// faultsOf makes one finding of each line of an error that holds several.
func faultsOf(subject string, err error) []plugins.Finding {
	var out []plugins.Finding
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if line != "" {
			out = append(out, plugins.Finding{Severity: plugins.Breaks, Subject: subject, Problem: line})
		}
	}
	return out
}

func inspectIdentity(ctx context.Context, cfg *config.Config) (*source.Source, []plugins.Finding) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	src, _, err := openIdentity(ctx, cfg, zap.NewNop())
	if err != nil {
		return nil, faultsOf("identity", err)
	}
	var found []plugins.Finding
	if err = refuseDevelopmentCA(src); err != nil {
		found = append(found, faultsOf("identity", err)...)
	}
	svid, err := src.GetX509SVID()
	if err != nil {
		return src, append(found, faultsOf("identity", err)...)
	}
	if len(svid.Certificates[0].DNSNames) == 0 {
		found = append(found, plugins.Finding{
			Severity: plugins.Weakens, Subject: "identity", Problem: svid.ID.String() + " has no DNS name: stock gRPC clients outside Go check names, not URIs",
			Remedy: "spire-server entry update … -dns stint.example.org",
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
		return resource.Set{}, nil
	}
	files, err := readResources(cfg.Resources)
	if err != nil {
		return resource.Set{}, faultsOf("resources", err)
	}
	set, problems := resource.Parse(files, backends)
	var warnings []string
	if len(problems) == 0 {
		var engine *policy.Engine
		if engine, problems = policy.Compile(set); engine != nil {
			warnings = append(set.Warnings(), engine.Warnings()...)
		}
	}
	var found []plugins.Finding
	for _, p := range problems {
		found = append(found, plugins.Finding{Severity: plugins.Breaks, Subject: "resources", Problem: p.String()})
	}
	for _, p := range set.Profiles() {
		if cause := cfg.CheckProfile(p.Name, p.Agents...); cause != nil {
			found = append(found, faultsOf("resources", cause)...)
		}
	}
	for _, w := range warnings {
		found = append(found, plugins.Finding{Severity: plugins.Weakens, Subject: "resources", Problem: w})
	}
	return set, found
}

// askBackends lets each backend that can look at its own set-up.
func askBackends(ctx context.Context, set resource.Set, backends map[string]plugins.Backend) []plugins.Finding {
	roles := map[string][]plugins.Role{}
	for _, r := range set.Roles() {
		roles[r.Backend] = append(roles[r.Backend], r.Plugin)
	}
	var found []plugins.Finding
	for name, b := range backends {
		if c, ok := b.(plugins.Checker); ok {
			for _, f := range c.Check(ctx, roles[name]) {
				f.Subject = name + " " + f.Subject
				found = append(found, f)
			}
		}
	}
	slices.SortStableFunc(found, func(a, b plugins.Finding) int { return strings.Compare(a.Subject, b.Subject) })
	return found
}

// report prints findings and turns the worst into an exit status.
func report(out io.Writer, show func(io.Writer, []plugins.Finding) error, found []plugins.Finding) error {
	code := 0
	for _, f := range found {
		switch f.Severity {
		case plugins.Breaks:
			code = exitBreaks
		case plugins.Weakens:
			if code == 0 {
				code = exitWeakens
			}
		}
	}
	if err := show(out, found); err != nil {
		return err
	}
	if code == 0 {
		return nil
	}
	return &codeError{code, fmt.Errorf("%d findings", len(found))}
}

// printJSON prints findings for programs.
func printJSON(out io.Writer, found []plugins.Finding) error {
	type finding struct {
		Severity string `json:"severity"`
		Subject  string `json:"subject"`
		Problem  string `json:"problem"`
		Remedy   string `json:"remedy,omitempty"`
	}
	list := make([]finding, 0, len(found))
	for _, f := range found {
		list = append(list, finding{string(f.Severity), f.Subject, f.Problem, f.Remedy})
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(list)
}

// printText prints findings for people.
func printText(out io.Writer, found []plugins.Finding) error {
	var b strings.Builder
	for _, f := range found {
		fmt.Fprintf(&b, "%-7s %s: %s\n", f.Severity, f.Subject, f.Problem)
		if f.Remedy != "" {
			fmt.Fprintf(&b, "        mend: %s\n", f.Remedy)
		}
	}
	if len(found) == 0 {
		b.WriteString("ok: nothing found\n")
	}
	_, err := io.WriteString(out, b.String())
	return err
}
