package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/stint-dev/stint/attestor"
)

// check finds what is wrong between keys.
func (d *decoder) check(c *Config) {
	d.checkListen(c.Listen)
	d.checkIdentity(c.Identity)
	d.checkTokens(c.Identity)
	d.checkDomains(c)
	d.checkAdmins(c)
	if within(c.Audit.KeyFile, c.DataDir) {
		d.add(d.where("audit.key_file", "audit"), fmt.Sprintf(
			"audit.key_file: %s is in data_dir; whoever takes the ledger must not get the key that signs it", c.Audit.KeyFile))
	}
}

// checkListen refuses one address for two listeners.
func (d *decoder) checkListen(l Listen) {
	seen := map[string]string{}
	for _, one := range []struct{ key, addr string }{{"grpc", l.GRPC}, {"http", l.HTTP}, {"jwt", l.JWT}} {
		if first, twice := seen[one.addr]; twice && !strings.HasSuffix(one.addr, ":0") {
			d.add(d.where("listen."+one.key, "listen"), fmt.Sprintf("listen.%s: %s is the address of listen.%s", one.key, one.addr, first))
		}
		if one.addr != "" {
			seen[one.addr] = one.key
		}
	}
}

// checkIdentity wants a Workload API or all three files.
func (d *decoder) checkIdentity(i Identity) {
	if !d.given("identity") {
		return // reported as missing
	}
	api := d.given("identity.workload_api")
	files := d.given("identity.cert_file") || d.given("identity.key_file") || d.given("identity.bundle_file")
	at := d.where("identity")
	switch {
	case api && files:
		d.add(at, "identity: workload_api and files are given; only one can be the source of the SVID")
	case !api && !files:
		d.add(at, "identity: set workload_api (SPIRE: unix:///run/spire/sockets/agent.sock) or cert_file, key_file and bundle_file")
	case files && (i.CertFile == "" || i.KeyFile == "" || i.BundleFile == ""):
		d.add(at, "identity: cert_file, key_file and bundle_file go together")
	case files && len(i.TrustDomains) > 1:
		d.add(d.where("identity.trust_domains"), "identity.trust_domains: bundle_file holds the authorities of one trust domain only; "+
			"accept others through a workload_api")
	}
}

// checkTokens wants JWT authorities for a listener that verifies JWT-SVIDs.
func (d *decoder) checkTokens(i Identity) {
	if i.BundleFile != "" && d.given("listen.jwt") {
		d.add(d.where("listen.jwt"), "listen.jwt: no JWT-SVID can be verified, since bundle_file holds no JWT authorities; set identity.workload_api")
	}
}

// checkDomains keeps the task trust domain apart from those that agents come from.
func (d *decoder) checkDomains(c *Config) {
	task := c.TaskTrustDomain
	if task.IsZero() {
		return
	}
	if slices.Contains(c.Identity.TrustDomains, task) || c.Identity.SPIFFEID.MemberOf(task) {
		d.add(d.where("task_trust_domain"), fmt.Sprintf(
			"task_trust_domain: %s is one that agents come from; issued certificates must have a trust domain of their own", task.Name()))
	}
}

// checkAdmins refuses administrators who could never call.
func (d *decoder) checkAdmins(c *Config) {
	for _, a := range c.Admins {
		td := a.Pattern.TrustDomain()
		known := !c.Identity.SPIFFEID.IsZero() // else a foreign domain may be the own one
		switch {
		case td.IsZero():
		case td == c.TaskTrustDomain:
			d.add(a.Range, fmt.Sprintf("admins %q: nobody calls with a certificate of the task trust domain", a.Pattern))
		case known && !c.Identity.SPIFFEID.MemberOf(td) && !slices.Contains(c.Identity.TrustDomains, td):
			d.add(a.Range, fmt.Sprintf("admins %q: trust domain %s is not accepted; add it to identity.trust_domains", a.Pattern, td.Name()))
		}
	}
}

// given says whether a key stands in the file.
func (d *decoder) given(key string) bool {
	_, ok := d.at[key]
	return ok
}

// within says whether a path lies in a folder.
func within(path, folder string) bool {
	rel, err := filepath.Rel(folder, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

// CheckProfile returns an [*Error] if an ID can match both a pattern of the named profile and one of an administrator:
// no identity is an agent and an administrator.
func (c Config) CheckProfile(profile string, agents ...attestor.Pattern) error {
	var found faults
	for _, p := range agents {
		for _, a := range c.Admins {
			if a.Pattern.Overlaps(p) {
				found.add(a.Range, fmt.Sprintf("admins %q: profile %s has agents %q; an ID cannot be both", a.Pattern, profile, p))
			}
		}
	}
	return found.err()
}
