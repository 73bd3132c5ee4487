package vault

import (
	"fmt"
	"strings"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault/internal/recipe"
)

// mount is what is known of an engine.
type mount struct {
	kind string        // "database", "ssh", "pki"; empty: may not be read
	ttl  time.Duration // default_lease_ttl
}

func (c *checker) role(role plugins.Role, mounts map[string]mount) {
	subject := "role " + role.Name
	r, err := recipe.Parse(role)
	if err != nil {
		c.add(plugins.Breaks, subject, err.Error(), "change the role's vault section")
		return
	}
	if _, missing := c.read("sys/policies/acl/" + r.Policy); missing {
		c.add(plugins.Breaks, subject, "policy "+r.Policy+" does not exist", "write it; `stintd setup vault` prints it")
	}
	if r.Kind != recipe.Lease {
		return
	}
	m, ok := mounts[r.Mount()]
	if !ok {
		m = c.mount(r.Mount())
		mounts[r.Mount()] = m
	}
	switch m.kind {
	case "ssh":
		c.uncuttable(role, r, m)
	case "pki":
		if path, known := engineRole(r); known {
			c.pki(subject, path)
		}
	case "database":
		if path, known := engineRole(r); known {
			c.database(subject, path)
		}
	case "aws":
		c.add(plugins.Weakens, subject, "an aws role of credential_type assumed_role, federation_token or session_token "+
			"gives a lease that vault cannot revoke", "use credential_type=iam_user")
	}
}

func (c *checker) mount(name string) mount {
	reply, missing := c.read("sys/mounts/" + name)
	if missing || reply == nil {
		return mount{}
	}
	var m mount
	var config struct {
		TTL int64 `json:"default_lease_ttl"` // seconds; 0: the system's
	}
	reply.Decode("type", &m.kind)
	reply.Decode("config", &config)
	m.ttl = time.Duration(config.TTL) * time.Second
	return m
}

// engineRole turns database/creds/stint-x and pki/issue/stint-x into database/roles/stint-x and pki/roles/stint-x.
func engineRole(r recipe.Recipe) (string, bool) {
	path, ok := r.Path()
	parts := strings.Split(path, "/")
	if !ok || len(parts) != 3 {
		return "", false
	}
	return parts[0] + "/roles/" + parts[2], true
}

// uncuttable is about engines that take the mount's TTL and whose leases cannot be renewed, so not cut either.
func (c *checker) uncuttable(role plugins.Role, r recipe.Recipe, m mount) {
	if m.ttl > 0 && (role.MaxTTL == 0 || m.ttl+issueTimeout <= role.MaxTTL) {
		return
	}
	c.add(plugins.Breaks, "role "+role.Name,
		fmt.Sprintf("leases of %s/ live %s and cannot be cut; every request for less is refused, and the role's maximum is %s",
			r.Mount(), ttlText(m.ttl), role.MaxTTL),
		"vault secrets tune -default-lease-ttl=30s "+r.Mount()+"/")
}

func ttlText(d time.Duration) string {
	if d == 0 {
		return "as long as the server's default_lease_ttl (32 days unless set)"
	}
	return d.String()
}

func (c *checker) pki(subject, path string) {
	reply, missing := c.read(path)
	if missing {
		c.add(plugins.Breaks, subject, path+" does not exist", "vault write "+path+" generate_lease=true …")
	}
	if reply == nil {
		return
	}
	var generates bool
	if reply.Decode("generate_lease", &generates) && !generates {
		c.add(plugins.Breaks, subject, path+" makes certificates without a lease, which stint cannot revoke",
			"vault write "+path+" generate_lease=true")
	}
}

func (c *checker) database(subject, path string) {
	reply, missing := c.read(path)
	if missing {
		c.add(plugins.Breaks, subject, path+" does not exist", "vault write "+path+" db_name=… creation_statements=…")
	}
	if reply == nil {
		return
	}
	var creation, revocation []string
	reply.Decode("creation_statements", &creation)
	reply.Decode("revocation_statements", &revocation)
	if text := strings.Join(creation, " "); strings.Contains(text, "CREATE ROLE") && !strings.Contains(text, "{{expiration}}") {
		c.add(plugins.Weakens, subject, "the creation statements of "+path+" set no end: a user that vault loses lives on",
			"add to CREATE ROLE: VALID UNTIL '{{expiration}}'")
	}
	if !strings.Contains(strings.Join(revocation, " "), "pg_terminate_backend") && strings.Contains(strings.Join(creation, " "), "CREATE ROLE") {
		c.add(plugins.Weakens, subject, "the revocation statements of "+path+" do not end open sessions",
			`begin them with: ALTER ROLE "{{name}}" NOLOGIN; SELECT pg_terminate_backend(pid) FROM pg_stat_activity `+
				`WHERE usename='{{name}}'; DROP ROLE IF EXISTS "{{name}}";`)
	}
}
