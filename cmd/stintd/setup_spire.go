package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/attestor"
)

// spireOptions are the flags of `stintd setup spire`.
type spireOptions struct {
	setupOptions

	parent    string
	socket    string
	dns       []string
	selectors []string
}

func setupSPIRECommand() *cobra.Command {
	var o spireOptions
	cmd := &cobra.Command{
		Use:   "spire --config FILE",
		Short: "Print the SPIRE registration entries of Stint and its agents, as a shell script",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			plan, err := o.load()
			if err != nil {
				return err
			}
			_, err = fmt.Fprint(cmd.OutOrStdout(), plan.spire(o))
			return err
		},
	}
	o.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&o.parent, "parent-id", "", "SPIFFE `ID` of the SPIRE agent on Stint's machine; otherwise the script wants STINT_PARENT_ID")
	f.StringVar(&o.socket, "server-socket", "", "`PATH` of the SPIRE server's socket, where it is not spire-server's default")
	f.StringArrayVar(&o.dns, "dns", nil, "`NAME` by which clients reach Stint; otherwise the host of audit.origin")
	f.StringArrayVar(&o.selectors, "selector", []string{"unix:user:stint"}, "`SELECTOR` of Stint's process")
	return cmd
}

// spire returns the script. Stint's own entry runs as it is; those of agents depend on where they run, and are comments.
func (p setupPlan) spire(o spireOptions) string {
	var b strings.Builder
	b.WriteString("#!/bin/sh\n# What SPIRE needs for Stint, as `stintd setup spire` prints it. Run it where spire-server can reach its server. It may\n" +
		"# run again: an entry that is there is brought up to date.\nset -eu\n")
	parent, socket := shellQuote(o.parent), ""
	if o.parent == "" {
		b.WriteString(": \"${STINT_PARENT_ID:?is the SPIFFE ID of the SPIRE agent on Stint's machine}\"\n")
		parent = `"$STINT_PARENT_ID"`
	}
	if o.socket != "" {
		socket = " -socketPath " + shellQuote(o.socket)
	}
	which := socket + " -parentID " + parent + " -spiffeID " + shellQuote(p.subject)
	b.WriteString("\n# Stint itself. The DNS name is for clients that check names, not URIs. An SVID lives at least six times as long as a\n" +
		"# connection, so that none is older than its SVID.\n")
	for _, id := range p.foreign() {
		fmt.Fprintf(&b, "# SPIRE has to have the bundle of %s: spire-server bundle set, or federates_with in its configuration.\n", id)
	}
	fmt.Fprintf(&b, "entry=$(spire-server entry show%s | sed -n 's/^Entry ID *: //p')\n", which)
	b.WriteString(`if [ -n "$entry" ]; then set -- update -entryID "$entry"; else set -- create; fi` + "\n")
	b.WriteString(strings.Join(append([]string{`spire-server entry "$@"` + which}, p.entry(o)...), " \\\n  ") + "\n")
	for _, profile := range p.set.Profiles() {
		fmt.Fprintf(&b, "\n# Agents of profile %s, one entry each, with the parent and the selectors of where it runs:\n", profile.Name)
		for _, pattern := range profile.Agents {
			fmt.Fprintf(&b, "#   spire-server entry create%s -parentID spiffe://%s/NODE -spiffeID %s -selector unix:user:NAME\n",
				socket, trustDomainOf(p.subject), example(pattern))
		}
	}
	return b.String()
}

// entry returns what Stint's entry holds, as spire-server's flags.
func (p setupPlan) entry(o spireOptions) []string {
	flags := []string{fmt.Sprintf("-x509SVIDTTL %d", int(max(6*p.cfg.Limits.ConnectionMaxAge, time.Hour).Seconds())), "-jwtSVIDTTL 300"}
	for _, s := range o.selectors {
		flags = append(flags, "-selector "+shellQuote(s))
	}
	for _, name := range o.names(p) {
		flags = append(flags, "-dns "+shellQuote(name))
	}
	for _, id := range p.foreign() {
		flags = append(flags, "-federatesWith "+shellQuote(id))
	}
	return flags
}

// foreign returns the accepted trust domains that are not Stint's own.
func (p setupPlan) foreign() []string {
	var out []string
	for _, td := range p.cfg.Identity.TrustDomains {
		if td.Name() != trustDomainOf(p.subject) {
			out = append(out, td.IDString())
		}
	}
	return out
}

// names returns the DNS names of Stint's SVID.
func (o spireOptions) names(p setupPlan) []string {
	if len(o.dns) > 0 {
		return o.dns
	}
	host, _, _ := strings.Cut(p.cfg.Audit.Origin, "/")
	return []string{host}
}

// example puts a name where a pattern leaves it open.
func example(pattern attestor.Pattern) string {
	return shellQuote(strings.NewReplacer("**", "NAME", "*", "NAME").Replace(pattern.String()))
}

func trustDomainOf(id string) string {
	name, _, _ := strings.Cut(strings.TrimPrefix(id, "spiffe://"), "/")
	return name
}

// shellQuote writes one word for a POSIX shell.
func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
