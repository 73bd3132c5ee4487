package stepca

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest"
	"github.com/stint-dev/stint/plugins/secret"
)

// TestOperatorsOwnIntermediate runs the suite under an operator's PKI.
func TestOperatorsOwnIntermediate(t *testing.T) {
	cfg := embeddedConfig(t.TempDir())
	p := newPKI(t)
	cfg.Embedded.IssuerCert, cfg.Embedded.IssuerKey, cfg.Embedded.IssuerRoots = p.cert, secret.New(p.key), p.root
	b, err := New(cfg, zap.NewNop())
	must(t, err)
	if len(b.Bundle()) != 2 {
		t.Errorf("a bundle of %d, want root and intermediate", len(b.Bundle()))
	}
	plugintest.Run(t, suite(t, b))
	if _, err := New(cfg, zap.NewNop()); err != nil {
		t.Errorf("second start: %v", err)
	}
}

// TestBadConfigurations expects each to be refused by its name.
func TestBadConfigurations(t *testing.T) {
	p, q := newPKI(t), newPKI(t)
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"mode":          {func(c *Config) { c.Mode = "cloud" }, "mode"},
		"domain":        {func(c *Config) { c.TaskTrustDomain = "a b" }, "task trust domain"},
		"UUID arc":      {func(c *Config) { c.ExtensionArc = "2.25.1" }, "extension arc"},
		"arc":           {func(c *Config) { c.ExtensionArc = "1.3.6.1.4.1.x" }, "extension arc"},
		"CRL URL":       {func(c *Config) { c.CRLURL = "/crl.der" }, "crl_url"},
		"validity":      {func(c *Config) { c.CRLValidity = time.Second }, "validity"},
		"no directory":  {func(c *Config) { c.Embedded.DataDir = "" }, "data directory"},
		"no key":        {func(c *Config) { c.Embedded.IssuerCert = p.cert }, "issuer_key"},
		"another key":   {own(p.cert, q.key, p.root), "issuer_key"},
		"no roots":      {own(p.cert, p.key, nil), "issuer_roots"},
		"another root":  {own(p.cert, p.key, q.root), "roots"},
		"no CA":         {own(p.leaf, p.leafKey, p.root), "may not sign"},
		"remote no URL": {func(c *Config) { c.Mode = Remote }, "url"},
		"remote root":   {func(c *Config) { c.Mode, c.Remote.URL, c.Remote.Provisioner = Remote, "https://ca", "p" }, "root_file"},
		"remote key": {func(c *Config) {
			c.Mode, c.Remote = Remote, RemoteConfig{URL: "https://ca", Provisioner: "p", RootPEM: p.root, Key: secret.FromString(`{"kty":"EC","d":"hush"}`)}
		}, "JWK"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := embeddedConfig(t.TempDir())
			c.change(&cfg)
			_, err := New(cfg, zap.NewNop())
			if !errors.Is(err, plugins.ErrMisconfigured) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hush") {
				t.Errorf("New said %v, want ErrMisconfigured that names %q", err, c.want)
			}
		})
	}
}

func own(cert, key, root []byte) func(*Config) {
	return func(c *Config) {
		c.Embedded.IssuerCert, c.Embedded.IssuerKey, c.Embedded.IssuerRoots = cert, secret.New(slices.Clone(key)), root
	}
}
