package stepca

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"regexp"
	"slices"
	"strings"
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
			role := newRequest(t).Role
			if tt.ttl > 0 {
				role.MaxTTL = tt.ttl
			}
			spoil := func(config map[string]any) {
				if tt.change != nil {
					tt.change(t, config)
				}
			}
			found, probed := checked(t, spoil, role)
			compare(t, "check", found, tt.check)
			compare(t, "probe", probed, tt.probe)
			if len(found)+len(probed) == 0 {
				return
			}
			// As an operator who does what it says, line by line.
			found, probed = checked(t, func(config map[string]any) {
				database := config["db"]
				spoil(config)
				for _, f := range slices.Concat(found, probed) {
					follow(t, config, database, f.Remedy)
				}
			}, followRole(t, role, found))
			compare(t, "check after the remedy", found, nil)
			compare(t, "probe after the remedy", probed, nil)
		})
	}
}

// checked starts a step-ca, checks it, and tries the role.
func checked(t *testing.T, change func(map[string]any), role plugins.Role) (check, probe []plugins.Finding) {
	t.Helper()
	ca := servertest.StartStepCA(t, servertest.StepCAOptions{Template: ProvisionerTemplate, Change: change})
	defer ca.Stop(t)
	cfg := remoteConfig(t, ca)
	cfg.CRLURL = ""
	b, err := New(cfg, zaptest.NewLogger(t, zaptest.Level(zap.ErrorLevel)))
	must(t, err)
	return b.Check(t.Context(), []plugins.Role{role}), b.Probe(t.Context(), role, nil)
}

// follow does to ca.json what a remedy says: lines of it, a database, a provisioner to be removed.
func follow(t *testing.T, config map[string]any, database any, remedy string) {
	t.Helper()
	for _, line := range regexp.MustCompile(`"(claims|crl)": (\{[^}]*\})`).FindAllStringSubmatch(remedy, -1) {
		into := claimsOf(t, config)
		if line[1] == "crl" {
			into, _ = config["crl"].(map[string]any)
			if into == nil {
				into = map[string]any{}
			}
			config["crl"] = into
		}
		must(t, json.Unmarshal([]byte(line[2]), &into))
	}
	if strings.Contains(remedy, `a "db"`) {
		config["db"] = database
	}
	if name := regexp.MustCompile(`provisioner remove (\w+)`).FindStringSubmatch(remedy); name != nil {
		authority, _ := config["authority"].(map[string]any)
		authority["provisioners"] = slices.DeleteFunc(provisionersOf(t, config), func(p any) bool {
			one, ok := p.(map[string]any)
			return ok && one["name"] == name[1]
		})
	}
}

// followRole does what remedies say of a role.
func followRole(t *testing.T, role plugins.Role, found []plugins.Finding) plugins.Role {
	t.Helper()
	for _, f := range found {
		if ttl := regexp.MustCompile(`ttl: \{max: (\w+)\} in the role`).FindStringSubmatch(f.Remedy); ttl != nil {
			d, err := time.ParseDuration(ttl[1])
			must(t, err)
			role.MaxTTL = d
		}
	}
	return role
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
		server := proxied(t, ca, func(resp *http.Response) {
			resp.Header.Set("Date", time.Now().Add(shift).UTC().Format(http.TimeFormat))
		})
		cfg := remoteConfig(t, ca)
		cfg.CRLURL, cfg.Remote.URL = "", server.URL
		cfg.Remote.RootPEM = append(encodeCertificate(server.Certificate()), ca.RootPEM...)
		b, err := New(cfg, zaptest.NewLogger(t, zaptest.Level(zap.ErrorLevel)))
		must(t, err)
		compare(t, shift.String(), b.Check(t.Context(), nil), want)
	}
}

// proxied puts a proxy that changes answers, with a certificate of its own, before a step-ca.
func proxied(t *testing.T, ca *servertest.StepCA, change func(*http.Response)) *httptest.Server {
	t.Helper()
	target, err := url.Parse(ca.URL)
	must(t, err)
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.Transport = ca.Client().Transport
	proxy.ModifyResponse = func(resp *http.Response) error {
		change(resp)
		return nil
	}
	server := httptest.NewTLSServer(proxy)
	t.Cleanup(server.Close)
	return server
}

// TestCheckOfConfigurations gives Stint a configuration that does not fit the step-ca that it is for.
func TestCheckOfConfigurations(t *testing.T) {
	t.Parallel()
	const url = "http://crl.example.org/crl.der"
	ca := servertest.StartStepCA(t, servertest.StepCAOptions{Template: ProvisionerTemplate, Change: func(config map[string]any) {
		crl, ok := config["crl"].(map[string]any)
		if !ok {
			t.Error("ca.json has no CRL")
		}
		crl["idpURL"] = url
	}})
	other := startStepCA(t)
	front := proxied(t, ca, func(*http.Response) {})
	for name, tt := range map[string]struct {
		change func(*Config)
		want   []string
	}{
		"nothing":               {},
		"another URL":           {func(c *Config) { c.CRLURL = "http://elsewhere.example.org/crl.der" }, []string{"warning ca-crl-url CRL"}},
		"another root":          {func(c *Config) { c.Remote.RootPEM = other.RootPEM }, []string{"error ca-unreachable step-ca"}},
		"nobody there":          {func(c *Config) { c.Remote.URL = "https://127.0.0.1:1" }, []string{"error ca-unreachable step-ca"}},
		"another name":          {func(c *Config) { c.Remote.Provisioner = "nobody" }, []string{"error ca-provisioner-missing provisioner nobody", "error ca-other-provisioner provisioner stint"}},
		"the root of its proxy": {func(c *Config) { c.Remote.URL, c.Remote.RootPEM = front.URL, encodeCertificate(front.Certificate()) }, []string{"error ca-crl-unreadable CRL"}},
		"a shorter validity":    {func(c *Config) { c.CRLValidity = 30 * time.Second }, []string{"error ca-crl-validity CRL"}},
	} {
		cfg := remoteConfig(t, ca)
		cfg.CRLURL = url
		if tt.change != nil {
			tt.change(&cfg)
		}
		b, err := New(cfg, zaptest.NewLogger(t, zaptest.Level(zap.ErrorLevel)))
		must(t, err)
		compare(t, name, b.Check(t.Context(), []plugins.Role{newRequest(t).Role}), tt.want)
	}
	ca.Stop(t)
	b, err := New(remoteConfig(t, ca), zaptest.NewLogger(t, zaptest.Level(zap.ErrorLevel)))
	must(t, err)
	compare(t, "stopped", b.Check(t.Context(), nil), []string{"error ca-unreachable step-ca"})
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
