package vault_test

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
)

// horizon is max_request_duration of these tests' Vaults, short so that tokens die soon.
const horizon = 4 * time.Second

// abandoned is a Vault, and a backend that issues and is never heard of again.
type abandoned struct {
	f  *vaulttest.Fixture
	b  *vault.Backend
	pg *servertest.Postgres
}

func abandon(t *testing.T, options servertest.VaultOptions) abandoned {
	t.Helper()
	options.MaxRequestDuration = horizon
	f := vaulttest.Setup(t, servertest.StartVault(t, options))
	cfg := f.Config()
	cfg.MaxRequestDuration = horizon
	return abandoned{f: f, b: backend(t, cfg), pg: servers.Postgres(t)}
}

// accessor returns the accessor of a credential's own token.
func accessor(t *testing.T, f *vaulttest.Fixture, handle plugins.Handle) string {
	t.Helper()
	for _, a := range f.Accessors(t) {
		if strings.Contains(string(handle), a) {
			return a
		}
	}
	t.Fatal("the credential's token is not at Vault")
	return ""
}

// token watches a credential's own token, which lives for the horizon longer.
func (a abandoned) token(t *testing.T, what string, handle plugins.Handle, end time.Time) vaulttest.Watch {
	t.Helper()
	return vaulttest.Watch{What: what + "'s token", End: end, Slack: horizon + vaulttest.LeaseSlack, Alive: a.f.TokenAlive(t, accessor(t, a.f, handle))}
}

// certificateEnd returns the NotAfter of a certificate of pki.
func certificateEnd(t *testing.T, cred plugins.Credential) time.Time {
	t.Helper()
	block, _ := pem.Decode([]byte(field(t, cred, "certificate")))
	if block == nil {
		t.Fatal("no certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert.NotAfter
}

// TestDeadMansSwitch issues one credential of each engine, and a token that is never used, as a crash before the intent
// leaves one. Then it does nothing more: all of it ends by Vault's own clock.
func TestDeadMansSwitch(t *testing.T) {
	a := abandon(t, servertest.VaultOptions{})
	otpRole, certRole, dbRole, kvRole := a.f.SSH(t), a.f.PKI(t), a.f.Database(t, a.pg), a.f.KV(t, "k")
	if _, err := a.f.Root.Logical().WriteWithContext(t.Context(), "sys/mounts/ssh/tune", map[string]any{"default_lease_ttl": "4s"}); err != nil {
		t.Fatal(err)
	}
	t.Parallel() // not before: both tests of this kind make the same database roles
	const ttl = 6 * time.Second
	stored := request(kvRole, ttl, nil)
	value, valueHeld := issue(t, a.b, stored)
	if !value.NotAfter.IsZero() {
		t.Errorf("a stored value ends at %s", value.NotAfter)
	}
	unused := request(otpRole, ttl, ip("10.0.0.61"))
	prepared, err := a.b.Prepare(t.Context(), unused)
	if err != nil {
		t.Fatal(err)
	}
	otp, otpHeld := issue(t, a.b, request(otpRole, ttl, ip("10.0.0.60")))
	cert, certHeld := issue(t, a.b, request(certRole, ttl, nil))
	if over := certificateEnd(t, cert).Sub(cert.NotAfter); over > vaulttest.CertificateSlack {
		t.Errorf("the certificate itself ends %s after the credential", over)
	}
	db, dbHeld := issue(t, a.b, request(dbRole, ttl, nil))
	user := field(t, db, "username")
	session := vaulttest.Connect(t, a.pg.DSN(user, field(t, db, "password"), "postgres"))
	super := vaulttest.Connect(t, a.pg.SuperDSN("postgres"))

	vaulttest.GoneInTime(
		t,
		vaulttest.Watch{What: "the one-time password's lease", End: otp.NotAfter, Slack: vaulttest.LeaseSlack, Alive: a.f.LeaseAlive(t, "ssh/creds/stint-otp")},
		a.token(t, "the one-time password", otpHeld.Handle, otp.NotAfter),
		vaulttest.Watch{What: "the certificate's lease", End: cert.NotAfter, Slack: vaulttest.LeaseSlack, Alive: a.f.LeaseAlive(t, "pki/issue/stint-internal")},
		a.token(t, "the certificate", certHeld.Handle, cert.NotAfter),
		vaulttest.Watch{What: "the database user's lease", End: db.NotAfter, Slack: vaulttest.LeaseSlack, Alive: a.f.LeaseAlive(t, "database/creds/stint-orders-ro")},
		vaulttest.Watch{What: "the database user", End: db.NotAfter, Slack: vaulttest.LeaseSlack, Alive: func() bool { return vaulttest.Users(t, super, user) > 0 }},
		a.token(t, "the database user", dbHeld.Handle, db.NotAfter),
		a.token(t, "the stored value", valueHeld.Handle, stored.NotAfter),
		a.token(t, "nobody", prepared.Handle, unused.NotAfter),
	)
	if err := session.QueryRow(t.Context(), "SELECT 1").Scan(new(int)); err == nil {
		t.Error("the open session goes on")
	}
	if _, err := a.f.Root.Logical().WriteWithContext(t.Context(), "ssh/verify", map[string]any{"otp": field(t, otp, "key")}); err == nil {
		t.Error("the one-time password still verifies")
	}
}

// TestDeadMansSwitchWithoutVault kills Vault too. The database itself refuses the user after its end, and a Vault that
// comes back removes it.
func TestDeadMansSwitchWithoutVault(t *testing.T) {
	a := abandon(t, servertest.VaultOptions{OnDisk: true})
	role := a.f.Database(t, a.pg)
	t.Parallel()
	cred, _ := issue(t, a.b, request(role, 5*time.Second, nil))
	user, password := field(t, cred, "username"), field(t, cred, "password")
	letIn := func() bool {
		conn, err := pgx.Connect(t.Context(), a.pg.DSN(user, password, "postgres"))
		if err == nil {
			_ = conn.Close(t.Context()) // it was let in
		}
		return err == nil
	}
	a.f.Server.Kill(t)
	if !letIn() {
		t.Fatal("the user cannot log in before its end")
	}
	vaulttest.GoneInTime(t, vaulttest.Watch{What: "the login", End: cred.NotAfter, Slack: vaulttest.DatabaseSlack, Alive: letIn})
	super := vaulttest.Connect(t, a.pg.SuperDSN("postgres"))
	there := func() bool { return vaulttest.Users(t, super, user) > 0 }
	if !there() {
		t.Error("somebody else removed the user")
	}
	a.f.Server.Restart(t)
	vaulttest.GoneInTime(t, vaulttest.Watch{What: "the user of a Vault that is back", End: time.Now(), Slack: vaulttest.LeaseSlack, Alive: there})
}

// TestRolesWithoutASwitchAreRefused lists the roles whose credentials would outlive Stint.
func TestRolesWithoutASwitchAreRefused(t *testing.T) {
	b := backend(t, vault.Config{Instance: "vault/none", Address: "http://127.0.0.1:1", Auth: vault.Auth{Token: &vault.TokenAuth{File: "none"}}})
	for name, section := range map[string]map[string]any{
		"a stored value":  {"path": "kv/data/partner", "policy": "stint-partner", "kind": "static"},
		"STS of aws":      {"path": "aws/sts/stint-x", "policy": "stint-x"},
		"another's token": {"path": "auth/token/create/stint-x", "policy": "stint-x"},
	} {
		if info, err := b.CheckRole(vaulttest.Role("r", section)); !errors.Is(err, plugins.ErrInvalidRole) {
			t.Errorf("%s is accepted: %+v, %v", name, info, err)
		}
	}
	c := goodSetup(t)
	for code, spoil := range map[string]func(){
		"database-no-end": func() {
			c.write(t, databasePath, databaseRole([]string{`CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}';`}, []string{vault.PostgreSQLRevocation}))
		},
		"engine-ttl": func() { c.write(t, "sys/mounts/ssh/tune", map[string]any{"default_lease_ttl": "8h"}) },
		"pki-no-lease": func() {
			c.write(t, pkiPath, map[string]any{"allowed_domains": "example.org", "allow_subdomains": true, "generate_lease": false, "key_type": "ec"})
		},
	} {
		spoil()
		if found := c.check(t); !slices.ContainsFunc(found, func(f plugins.Finding) bool { return f.Code == code && f.Severity == plugins.Breaks }) {
			t.Errorf("no %s among %+v", code, found)
		}
	}
}
