package config

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/hashicorp/hcl/v2/json"

	"github.com/stint-dev/stint/attestor"
)

// Load reads the file at path. plugins are the types of backends that the program has. The error is an [*Error], or
// says why the file cannot be read.
func Load(path string, plugins ...string) (*Config, error) {
	src, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(path, src, plugins...)
}

// Parse reads a configuration: JSON where the name ends in .json, else HCL. The error is an [*Error]; the name stands
// in it.
func Parse(name string, src []byte, plugins ...string) (*Config, error) {
	d := &decoder{at: map[string]hcl.Range{"": {Filename: name, Start: hcl.InitialPos, End: hcl.InitialPos}}}
	file, diags := parseFile(name, src)
	d.diagnose(diags)
	if diags.HasErrors() {
		return nil, d.err()
	}
	c := Default()
	d.read("", file.Body, d.top(&c, plugins))
	d.check(&c)
	if err := d.err(); err != nil {
		return nil, err
	}
	return &c, nil
}

func parseFile(name string, src []byte) (*hcl.File, hcl.Diagnostics) {
	if filepath.Ext(name) == ".json" {
		return json.Parse(src, name)
	}
	return hclsyntax.ParseConfig(src, name, hcl.InitialPos)
}

// top is the file itself.
func (d *decoder) top(c *Config, plugins []string) block {
	return block{
		fields: map[string]field{
			"data_dir":          text(&c.DataDir, absolute),
			"task_trust_domain": must(parsed(&c.TaskTrustDomain, trustDomain)),
			"resources":         text(&c.Resources, orEmpty(absolute)),
		},
		blocks: map[string]section{
			"listen":    {decode: d.into(listen(&c.Listen))},
			"identity":  {decode: d.into(identity(&c.Identity)), required: true},
			"ledger":    {decode: d.ledger(&c.Ledger), labels: []string{"type"}},
			"audit":     {decode: d.into(audit(&c.Audit)), required: true},
			"limits":    {decode: d.into(limits(&c.Limits))},
			"teardown":  {decode: d.into(teardown(&c.Teardown))},
			"reconcile": {decode: d.into(reconciling(&c.Reconcile))},
			"log":       {decode: d.into(logging(&c.Log))},
			"admins":    {decode: d.admin(&c.Admins), labels: []string{"pattern"}, many: true},
			"backend":   {decode: d.backend(&c.Backends, plugins), labels: []string{"type", "name"}, many: true},
		},
	}
}

// into decodes a block without labels.
func (d *decoder) into(b block) func(*hcl.Block) {
	return func(one *hcl.Block) { d.read(one.Type, one.Body, b) }
}

func listen(l *Listen) block {
	return block{fields: map[string]field{
		"grpc":       text(&l.GRPC, hostPort),
		"http":       text(&l.HTTP, orEmpty(hostPort)),
		"admin":      parsed(&l.Admin, socketPath),
		"jwt":        text(&l.JWT, orEmpty(hostPort)),
		"reflection": flag(&l.Reflection),
	}}
}

func identity(i *Identity) block {
	return block{fields: map[string]field{
		"workload_api":  text(&i.WorkloadAPI, workloadAPI),
		"cert_file":     text(&i.CertFile, absolute),
		"key_file":      text(&i.KeyFile, absolute),
		"bundle_file":   text(&i.BundleFile, absolute),
		"spiffe_id":     parsed(&i.SPIFFEID, spiffeID),
		"trust_domains": parsedList(&i.TrustDomains, trustDomain),
	}}
}

func audit(a *Audit) block {
	return block{fields: map[string]field{
		"origin":      must(text(&a.Origin, origin)),
		"key_file":    text(&a.KeyFile, absolute),
		"file":        text(&a.File, orEmpty(absolute)),
		"checkpoints": text(&a.Checkpoints, orEmpty(absolute)),
	}}
}

func limits(l *Limits) block {
	return block{fields: map[string]field{
		"connection_max_age":     duration(&l.ConnectionMaxAge, time.Second, 24*time.Hour),
		"connection_grace":       duration(&l.ConnectionGrace, time.Second, time.Hour),
		"handshake_timeout":      duration(&l.HandshakeTimeout, time.Second, time.Minute),
		"max_concurrent_streams": count(&l.MaxConcurrentStreams, 1, 65536),
		"max_message":            size(&l.MaxMessage, 16*KiB, 16*MiB),
	}}
}

func teardown(t *Teardown) block {
	return block{fields: map[string]field{
		"stuck_after": duration(&t.StuckAfter, 10*time.Second, 24*time.Hour),
	}}
}

func reconciling(r *Reconcile) block {
	return block{fields: map[string]field{
		"every": duration(&r.Every, 0, 7*24*time.Hour),
	}}
}

func logging(l *Log) block {
	return block{fields: map[string]field{
		"level":  text(&l.Level, oneOf("debug", "info", "warn", "error")),
		"format": text(&l.Format, oneOf("json", "console")),
	}}
}

// ledger decodes the one kind of store that there is.
func (d *decoder) ledger(l *Ledger) func(*hcl.Block) {
	return func(one *hcl.Block) {
		if err := oneOf("sqlite")(one.Labels[0]); err != nil {
			d.add(one.DefRange, "ledger: "+err.Error())
			return
		}
		l.Type = one.Labels[0]
		d.read("ledger", one.Body, block{fields: map[string]field{
			"stop_issuing_below": size(&l.StopIssuingBelow, 1*MiB, 16*TiB),
		}})
	}
}

// admin decodes one rule of administration.
func (d *decoder) admin(admins *[]Admin) func(*hcl.Block) {
	return func(one *hcl.Block) {
		rule := Admin{Range: one.DefRange}
		var err error
		if rule.Pattern, err = attestor.ParsePattern(one.Labels[0]); err != nil {
			d.add(one.DefRange, "admins: "+err.Error())
		}
		var role string
		d.read(join("admins", one.Labels[0]), one.Body, block{fields: map[string]field{
			"role": must(text(&role, oneOf(adminRoles()...))),
		}})
		rule.Role = attestor.AdminRole(role)
		*admins = append(*admins, rule)
	}
}

func adminRoles() []string {
	var names []string
	for _, r := range attestor.AdminRoles() {
		names = append(names, string(r))
	}
	return names
}
