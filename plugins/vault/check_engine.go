package vault

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/stint-dev/stint/plugins/vault/internal/recipe"
	"github.com/stint-dev/stint/plugins/vault/internal/rest"
)

// The statements that docs/databases.md explains.
const (
	// PostgreSQLValidUntil ends a user by PostgreSQL's own clock.
	PostgreSQLValidUntil = `VALID UNTIL '{{expiration}}'`
	// PostgreSQLRevocation ends a user and the sessions that it has open. It also succeeds where somebody has dropped the user.
	PostgreSQLRevocation = `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename='{{name}}'; DROP ROLE IF EXISTS "{{name}}";`
	// MySQLEvent drops a user by MySQL's own clock, which knows no VALID UNTIL. It stands before CREATE USER: each statement is
	// kept by itself, and a user without its event has no end.
	MySQLEvent = "CREATE EVENT stint.`{{name}}` ON SCHEDULE AT CONVERT_TZ(LEFT('{{expiration}}', 19), " +
		"CONCAT(SUBSTR('{{expiration}}', 20, 3), ':', SUBSTR('{{expiration}}', 23, 2)), @@session.time_zone) " +
		"DO DROP USER IF EXISTS '{{name}}'@'%';"
	// MySQLRevocation ends a user and its sessions, with a procedure of docs/databases.md, since KILL takes no query. It also
	// succeeds where the event was first.
	MySQLRevocation = `ALTER USER IF EXISTS '{{name}}'@'%' ACCOUNT LOCK; CALL stint.end_sessions('{{name}}'); ` +
		"DROP USER IF EXISTS '{{name}}'@'%'; DROP EVENT IF EXISTS stint.`{{name}}`;"
)

// crlSettings rebuild the CRL of pki on a timer, and a delta every minute.
const crlSettings = "auto_rebuild=true enable_delta=true delta_rebuild_interval=1m expiry=1h auto_rebuild_grace_period=30m"

// existing reads an engine's role and reports one that is not there.
func (c *roleChecker) existing(path, how string) *rest.Reply {
	reply, missing := c.read(path)
	if missing {
		c.breaks("engine-role-missing", c.subject, path+" does not exist", "vault write "+path+" "+how)
	}
	return reply
}

func (c *roleChecker) ssh(path string) {
	reply := c.existing(path, "key_type=otp default_user=USER cidr_list=CIDR")
	var kind string
	if reply != nil && reply.Decode("key_type", &kind) && kind != "otp" {
		c.breaks("ssh-not-otp", c.subject, path+" has key_type "+kind+", which vault cannot revoke", "vault write "+path+" key_type=otp …")
	}
}

// aws is about roles whose keys come from STS. Vault ends their leases without a word, and they work until they expire.
func (c *roleChecker) aws(path string) {
	reply := c.existing(path, "credential_type=iam_user …")
	var kind string
	if reply != nil && reply.Decode("credential_type", &kind) && kind != "iam_user" {
		c.breaks("aws-sts", c.subject, path+" has credential_type "+kind+", whose keys nobody can revoke", "vault write "+path+" credential_type=iam_user …")
	}
}

func (c *roleChecker) pki(path string) {
	if reply := c.existing(path, "generate_lease=true …"); reply != nil {
		c.pkiRole(path, reply)
	}
	crl := c.recipe.Mount() + "/config/crl"
	reply, missing := c.read(crl)
	if reply == nil && !missing {
		return
	}
	var disabled, rebuilds bool
	if reply != nil {
		reply.Decode("disable", &disabled)
		reply.Decode("auto_rebuild", &rebuilds)
	}
	switch {
	case disabled:
		c.breaks("pki-crl-off", c.subject, crl+" disables the CRL: nobody learns of a revocation", "vault write "+crl+" disable=false "+crlSettings)
	case !rebuilds:
		c.weakens("pki-auto-rebuild", c.subject, crl+" has auto_rebuild off: each revocation rebuilds the whole CRL, in seconds once it has thousands of entries",
			"vault write "+crl+" "+crlSettings)
	}
}

func (c *roleChecker) pkiRole(path string, reply *rest.Reply) {
	var generates, noStore bool
	reply.Decode("no_store", &noStore)
	switch {
	case noStore:
		c.breaks("pki-no-store", c.subject, path+" stores no certificates, so none can be revoked", "vault patch "+path+" no_store=false generate_lease=true")
	case reply.Decode("generate_lease", &generates) && !generates:
		c.breaks("pki-no-lease", c.subject, path+" makes certificates without a lease, which stint cannot revoke", "vault patch "+path+" generate_lease=true")
	}
	if !c.takesTTL() {
		c.breaks("engine-ttl", c.subject, "leases of pki cannot be cut, and the request does not say how long the certificate may live: what lives too long is refused",
			`vault: {data: {ttl: "{{ .ttl }}"}} in the role`)
	}
	c.engineMax("vault patch "+path, reply)
}

// takesTTL reports whether the request depends on the TTL.
func (c *roleChecker) takesTTL() bool {
	params := map[string]string{}
	for _, name := range c.role.Parameters {
		params[name] = sample
	}
	_, _, one, err := c.recipe.Call(recipe.Values{Params: params, TTL: 1})
	_, _, other, err2 := c.recipe.Call(recipe.Values{Params: params, TTL: 2})
	return err != nil || err2 != nil || !reflect.DeepEqual(one, other)
}

// engineMax is about a role of the engine that ends its leases before Stint's role does. The command changes it.
func (c *roleChecker) engineMax(change string, reply *rest.Reply) {
	var limit int64
	if reply.Decode("max_ttl", &limit) && limit > 0 && seconds(limit) < c.role.MaxTTL {
		c.weakens("engine-max-ttl", c.subject, fmt.Sprintf("ttl.max is %s, and the engine's own role ends every lease after %s", c.role.MaxTTL, seconds(limit)),
			fmt.Sprintf("%s max_ttl=%s", change, c.role.MaxTTL))
	}
}

func (c *roleChecker) database(path string) {
	reply := c.existing(path, "db_name=… creation_statements=… revocation_statements=…")
	if reply == nil {
		return
	}
	c.engineMax("vault write "+path, reply)
	c.forgotten(path, reply)
	creation, revocation := statements(reply, "creation_statements"), statements(reply, "revocation_statements")
	upper := strings.ToUpper(creation)
	ends := strings.Contains(creation, "{{expiration}}")
	switch databaseKind(upper) {
	case "postgresql":
		if !ends || !strings.Contains(upper, "VALID UNTIL") {
			c.lives(path, "add to CREATE ROLE: "+PostgreSQLValidUntil)
		}
		if !strings.Contains(revocation, "pg_terminate_backend") {
			c.sessions(path, PostgreSQLRevocation)
		}
		c.renewal(path, reply)
	case "mysql":
		event := strings.Index(upper, "CREATE EVENT")
		if !ends || event < 0 || event > strings.Index(upper, "CREATE USER") {
			c.lives(path, "add before CREATE USER: "+MySQLEvent)
		}
		if c.recipe.EngineEnd == recipe.WithLease {
			c.wrongEnd("the event that ends a user of mysql stays where it is when vault cuts the lease", recipe.AtMaximum)
		}
		if text := strings.ToUpper(revocation); !strings.Contains(text, "KILL") && !strings.Contains(text, "CALL ") {
			c.sessions(path, MySQLRevocation)
		}
	default:
		c.unknownDatabase(path, revocation)
	}
}

// renewal is about statements of an operator's own that vault runs when it cuts a lease.
func (c *roleChecker) renewal(path string, reply *rest.Reply) {
	renewal := strings.ToUpper(statements(reply, "renew_statements"))
	if c.recipe.EngineEnd == recipe.WithLease && renewal != "" && !strings.Contains(renewal, "VALID UNTIL") {
		c.wrongEnd("the renew_statements of "+path+" do not move VALID UNTIL", recipe.AtMaximum)
	}
}

func (c *roleChecker) unknownDatabase(path, revocation string) {
	c.unstated("this database")
	if revocation == "" {
		c.weakens("database-sessions", c.subject, path+" has no revocation statements: what becomes of open sessions is up to vault's plugin",
			"vault write "+path+" revocation_statements=…")
	}
}

// forgotten is about users that vault makes and then does not know: the connection broke between making one and storing
// its lease. Nobody has its password, and only the end in its creation statement, default_ttl away, ends it. The lease's
// record says ttl.max, and would be untrue.
func (c *roleChecker) forgotten(path string, reply *rest.Reply) {
	var def int64
	if !reply.Decode("default_ttl", &def) || (def > 0 && seconds(def) <= c.role.MaxTTL) {
		return
	}
	has := "no default_ttl of its own"
	if def > 0 {
		has = "default_ttl " + seconds(def).String()
	}
	c.breaks("database-default-ttl", c.subject,
		fmt.Sprintf("%s has %s, and ttl.max is %s: a user that vault makes and forgets, as after a crash, lives longer than the record says",
			path, has, c.role.MaxTTL),
		fmt.Sprintf("vault write %s default_ttl=%s", path, c.role.MaxTTL))
}

func (c *roleChecker) lives(path, remedy string) {
	c.breaks("database-no-end", c.subject, "the creation statements of "+path+" do not see to it that a user ends: one that vault loses lives on",
		remedy+" (docs/databases.md)")
}

func (c *roleChecker) sessions(path, remedy string) {
	c.weakens("database-sessions", c.subject, "the revocation statements of "+path+" do not end open sessions",
		"vault write "+path+" revocation_statements="+shellQuote(remedy))
}

func statements(reply *rest.Reply, key string) string {
	var list []string
	reply.Decode(key, &list)
	return strings.Join(list, "; ")
}

// databaseKind tells the two families of SQL apart by how they name a user, in upper case; "" for others.
func databaseKind(upper string) string {
	switch {
	case strings.Contains(upper, "CREATE USER '{{NAME}}'@"), strings.Contains(upper, "CREATE USER '{{USERNAME}}'@"):
		return "mysql"
	case strings.Contains(upper, "CREATE ROLE"), strings.Contains(upper, `CREATE USER "{{NAME}}"`):
		return "postgresql"
	}
	return ""
}
