package stepca

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/servertest"
)

// claimsOf returns the claims of the provisioner in ca.json.
func claimsOf(t *testing.T, config map[string]any) map[string]any {
	t.Helper()
	claims, ok := provisionersOf(t, config)[0].(map[string]any)["claims"].(map[string]any)
	if !ok {
		t.Fatal("the provisioner has no claims")
	}
	return claims
}

func provisionersOf(t *testing.T, config map[string]any) []any {
	t.Helper()
	authority, ok := config["authority"].(map[string]any)
	if !ok {
		t.Fatal("ca.json has no authority")
	}
	list, ok := authority["provisioners"].([]any)
	if !ok {
		t.Fatal("ca.json has no provisioners")
	}
	return list
}

// TestCheckFindsPlantedFaults starts a step-ca with one fault each, and expects check, and what --probe adds, to find
// exactly that. What the probe left is on the CRL or was never renewed.
func TestCheckFindsPlantedFaults(t *testing.T) {
	t.Parallel()
	claim := func(key string, value any) func(*testing.T, map[string]any) {
		return func(t *testing.T, config map[string]any) { t.Helper(); claimsOf(t, config)[key] = value }
	}
	without := func(key string) func(*testing.T, map[string]any) {
		return func(t *testing.T, config map[string]any) { t.Helper(); delete(claimsOf(t, config), key) }
	}
	crl := func(value map[string]any) func(*testing.T, map[string]any) {
		return func(t *testing.T, config map[string]any) { t.Helper(); config["crl"] = value }
	}
	for name, tt := range map[string]struct {
		change       func(*testing.T, map[string]any)
		ttl          time.Duration
		check, probe []string
	}{
		"nothing":            {},
		"renewal":            {change: claim("disableRenewal", false), check: []string{"error ca-renewal provisioner stint"}, probe: []string{"error ca-renewal role ledger-api"}},
		"renewal not stated": {change: without("disableRenewal"), check: []string{"warning ca-renewal-unstated provisioner stint"}, probe: []string{"error ca-renewal role ledger-api"}},
		"no extension":       {change: claim("disableSmallstepExtensions", true), check: []string{"error ca-no-extension provisioner stint"}},
		"minimum too long":   {change: claim("minTLSCertDuration", "10m"), ttl: 8 * time.Minute, check: []string{"warning ca-min-ttl role ledger-api"}, probe: []string{"error probe-issue role ledger-api"}},
		"minimum not stated": {change: without("minTLSCertDuration"), ttl: 4 * time.Minute, check: []string{"warning ca-min-ttl role ledger-api"}, probe: []string{"error probe-issue role ledger-api"}},
		"maximum too short":  {change: claim("maxTLSCertDuration", "30m"), check: []string{"warning ca-max-ttl role ledger-api"}},
		"no CRL":             {change: crl(nil), check: []string{"error ca-crl-off CRL"}, probe: []string{"error probe-revoke role ledger-api"}},
		"CRL not on revoke": {
			change: crl(map[string]any{"enabled": true, "generateOnRevoke": false, "cacheDuration": "1m"}),
			probe:  []string{"error ca-crl-on-revoke role ledger-api"},
		},
		"CRL valid too long": {
			change: crl(map[string]any{"enabled": true, "generateOnRevoke": true, "cacheDuration": "24h"}), check: []string{"error ca-crl-validity CRL"},
		},
		"no database": {
			change: func(_ *testing.T, config map[string]any) { delete(config, "db"); delete(config, "crl") },
			check:  []string{"error ca-crl-off CRL"}, probe: []string{"error probe-revoke role ledger-api"},
		},
		"no database and no extension": {
			change: func(t *testing.T, config map[string]any) {
				t.Helper()
				delete(config, "db")
				delete(config, "crl")
				claimsOf(t, config)["disableSmallstepExtensions"] = true
			},
			check: []string{"error ca-no-extension provisioner stint", "error ca-crl-off CRL"},
			probe: []string{"error ca-renewal role ledger-api", "error probe-revoke role ledger-api"},
		},
		"another provisioner": {change: anotherProvisioner, check: []string{"error ca-other-provisioner provisioner other"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := servertest.StartStepCA(t, servertest.StepCAOptions{Template: ProvisionerTemplate, Change: func(config map[string]any) {
				if tt.change != nil {
					tt.change(t, config)
				}
			}})
			cfg := remoteConfig(t, ca)
			cfg.CRLURL = ""
			b, err := New(cfg, zaptest.NewLogger(t, zaptest.Level(zap.ErrorLevel)))
			must(t, err)
			role := newRequest(t).Role
			if tt.ttl > 0 {
				role.MaxTTL = tt.ttl
			}
			found := b.Check(t.Context(), []plugins.Role{role})
			compare(t, "check", found, tt.check)
			compare(t, "probe", b.Probe(t.Context(), role, nil), tt.probe)
		})
	}
}

func compare(t *testing.T, what string, found []plugins.Finding, want []string) {
	t.Helper()
	var got []string
	for _, f := range found {
		got = append(got, string(f.Severity)+" "+f.Code+" "+f.Subject)
		if f.Problem == "" || f.Remedy == "" {
			t.Errorf("%s: %s has no problem or no remedy: %+v", what, f.Code, f)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s found %v, want %v: %+v", what, got, want, found)
	}
}

func anotherProvisioner(t *testing.T, config map[string]any) {
	t.Helper()
	jwk := jose.JSONWebKey{Key: newKey(t).Public(), KeyID: "other-1", Algorithm: string(jose.ES256), Use: "sig"}
	authority, ok := config["authority"].(map[string]any)
	if !ok {
		t.Fatal("ca.json has no authority")
	}
	authority["provisioners"] = append(provisionersOf(t, config), map[string]any{"type": "JWK", "name": "other", "key": jwk})
}

// TestCheckStepCAClock puts a step-ca behind a proxy that changes what time it is there.
func TestCheckStepCAClock(t *testing.T) {
	ca := startStepCA(t)
	for shift, want := range map[time.Duration][]string{
		2 * time.Second: nil, -20 * time.Second: {"warning clock clock"}, 20 * time.Second: {"warning clock clock"}, 5 * time.Minute: {"error clock clock"},
	} {
		target, err := url.Parse(ca.URL)
		must(t, err)
		proxy := httputil.NewSingleHostReverseProxy(target)
		proxy.Transport = ca.Client().Transport
		proxy.ModifyResponse = func(resp *http.Response) error {
			resp.Header.Set("Date", time.Now().Add(shift).UTC().Format(http.TimeFormat))
			return nil
		}
		server := httptest.NewTLSServer(proxy)
		t.Cleanup(server.Close)
		cfg := remoteConfig(t, ca)
		cfg.CRLURL, cfg.Remote.URL = "", server.URL
		cfg.Remote.RootPEM = append(encodeCertificate(server.Certificate()), ca.RootPEM...)
		b, err := New(cfg, zaptest.NewLogger(t, zaptest.Level(zap.ErrorLevel)))
		must(t, err)
		compare(t, shift.String(), b.Check(t.Context(), nil), want)
	}
}

// TestProbeLeavesNothing expects the one certificate that a probe has made to be on the CRL.
func TestProbeLeavesNothing(t *testing.T) {
	ca := startStepCA(t)
	b := newRemoteBackend(t, remoteConfig(t, ca))
	before := len(ca.CRL(t).RevokedCertificateEntries)
	compare(t, "probe", b.Probe(t.Context(), newRequest(t).Role, nil), nil)
	if after := len(ca.CRL(t).RevokedCertificateEntries); after != before+1 {
		t.Errorf("%d entries on the CRL after %d", after, before)
	}
}
