package stepca

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/internal/database"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/servertest"
)

// house is a step-ca whose database can be asked.
type house struct {
	ca   *servertest.StepCA
	db   *Database
	exec func(statement string) // as the administrator of the database
	stop func()                 // the database
}

func inPostgres(t *testing.T) house {
	t.Helper()
	pg := servertest.StartPostgres(t)
	h := house{stop: func() { pg.Stop(t) }, exec: func(statement string) {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), pg.SuperDSN("stepca"))
		must(t, err)
		_, err = conn.Exec(t.Context(), statement)
		must(t, errors.Join(err, conn.Close(t.Context())))
	}}
	h.ca = servertest.StartStepCA(t, servertest.StepCAOptions{Database: "postgresql", Source: pg.SuperDSN("")})
	h.exec("CREATE ROLE stint_inventory LOGIN PASSWORD 'readme'")
	h.db = &Database{Kind: database.Postgres, Addr: pg.Addr}
	return h
}

func inMariaDB(t *testing.T) house {
	t.Helper()
	m := servertest.StartMariaDB(t)
	super := m.Super(t)
	h := house{stop: func() { m.Stop(t) }, exec: func(statement string) {
		t.Helper()
		_, err := super.ExecContext(t.Context(), statement)
		must(t, err)
	}}
	h.ca = servertest.StartStepCA(t, servertest.StepCAOptions{
		Database: "mysql", Source: fmt.Sprintf("%s:%s@tcp(%s)/", m.SuperUser, m.SuperPassword, m.Addr),
	})
	h.exec("USE stepca")
	h.exec("CREATE USER stint_inventory IDENTIFIED BY 'readme'")
	h.db = &Database{Kind: database.MySQL, Addr: m.Addr}
	return h
}

// backend is one of a broker that may look into the database.
func (h house) backend(t *testing.T, password string) *Backend {
	t.Helper()
	cfg, db := remoteConfig(t, h.ca), *h.db
	db.User, db.Database, db.Plain = "stint_inventory", "stepca", true
	db.Password = func(context.Context) (secret.Value, error) { return secret.FromString(password), nil }
	cfg.Remote.Database = &db
	return newRemoteBackend(t, cfg)
}

// steal has a certificate signed with the provisioner's key, past any broker, and returns its serial number.
func (h house) steal(t *testing.T, number *big.Int) string {
	t.Helper()
	thief := newRemoteBackend(t, remoteConfig(t, h.ca))
	r, _ := thief.ca.(*remote)
	l, err := thief.settings.newLeaf(newRequest(t), time.Now())
	must(t, err)
	c := r.tokens.claimsFor(t.Context(), r.client.base+pathSign, l, "")
	c.Stint.Serial = number.String()
	token, err := r.tokens.sign(c)
	must(t, err)
	status, body, err := r.client.post(t.Context(), pathSign, map[string]string{
		"csr": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: l.csr.Raw})), "ott": token,
		"notAfter": l.notAfter.UTC().Format(time.RFC3339),
	})
	if err != nil || status != http.StatusCreated {
		t.Fatalf("step-ca answers %d, %v", status, err)
	}
	chain, err := parseSigned(body)
	must(t, err)
	return fmt.Sprintf("%032X", chain[0].SerialNumber)
}

// serials returns what is listed, by serial number, and the errors in the list.
func serials(t *testing.T, b *Backend) (map[string]plugins.Found, []error) {
	t.Helper()
	all := map[string]plugins.Found{}
	var faults []error
	for f, err := range b.Issued(t.Context()) {
		if _, partial := errors.AsType[*plugins.PartialError](err); partial && !strings.Contains(err.Error(), "others") {
			continue // since when it lists what it has asked for
		}
		if err != nil {
			faults = append(faults, err)
			continue
		}
		all[string(f.Handle)] = f
	}
	return all, faults
}

// TestRemoteDatabase lists what step-ca has signed for somebody else, from its database, and revokes it, whatever its serial
// number. A database that does not let itself be read ends the list, and check says so.
func TestRemoteDatabase(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(*testing.T) house{"PostgreSQL": inPostgres, "MariaDB": inMariaDB} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := start(t)
			b := h.backend(t, "readme")
			unreadable(t, b, plugins.ErrMisconfigured)
			h.mends(t, b, "ca-database warning")
			h.mends(t, b)
			unreadable(t, h.backend(t, "wrong"), plugins.ErrMisconfigured)

			req := newRequest(t)
			issue(t, b, req)
			long, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 158))
			must(t, err)
			h.listsAndRevokes(t, b, req.Lease.String(), h.steal(t, serial(newLease(t))), h.steal(t, long.SetBit(long, 158, 1)))
			if end, err := b.Revoke(t.Context(), plugins.Held{Handle: plugins.Handle(strings.Repeat("F", 41))}); !errors.Is(err, plugins.ErrUnknownHandle) {
				t.Errorf("a number that no certificate can have was revoked: %+v, %v", end, err)
			}
			h.stop()
			unreadable(t, b, plugins.ErrUnavailable)
		})
	}
}

// unreadable expects a list that ends because the database cannot be read.
func unreadable(t *testing.T, b *Backend, want error) {
	t.Helper()
	if _, faults := serials(t, b); len(faults) != 1 || !errors.Is(faults[0], want) || errors.Is(faults[0], errors.ErrUnsupported) {
		t.Errorf("the list ends with %v, want %v", faults, want)
	}
}

// mends expects what check finds about the database, and does what it says.
func (h house) mends(t *testing.T, b *Backend, want ...string) {
	t.Helper()
	var codes []string
	for _, f := range b.Check(t.Context(), nil) {
		if f.Subject == "database" {
			codes = append(codes, f.Code+" "+string(f.Severity))
			h.exec(f.Remedy)
		}
	}
	if !slices.Equal(codes, want) {
		t.Errorf("check says %q, want %q", codes, want)
	}
}

// listsAndRevokes expects exactly these certificates, and that what the list says suffices to revoke them.
func (h house) listsAndRevokes(t *testing.T, b *Backend, want ...string) {
	t.Helper()
	all, faults := serials(t, b)
	if len(all) != len(want) || len(faults) > 0 {
		t.Fatalf("listed are %v, and it ends with %v; want %v", all, faults, want)
	}
	for _, number := range want {
		f, listed := all[number]
		if !listed || time.Until(f.NotAfter) > 6*time.Minute || time.Since(f.IssuedAt).Abs() > 3*time.Minute {
			t.Errorf("%s is listed as %+v", number, f)
			continue
		}
		end, err := b.Revoke(t.Context(), plugins.Held{Handle: f.Handle, NotAfter: f.NotAfter})
		if err != nil || end.Proof != plugins.OnCRL || !onListOf(t, h.ca, number) {
			t.Errorf("revoke %s: %+v, %v", number, end, err)
		}
	}
	r, _ := b.ca.(*remote)
	for _, err := range r.inDatabase(t.Context(), time.Now().Add(time.Hour)) {
		t.Errorf("an hour later the list ends with %v, or holds what has expired", err)
	}
}

// onListOf reports whether step-ca's own CRL holds a serial number.
func onListOf(t *testing.T, ca *servertest.StepCA, number string) bool {
	t.Helper()
	return slices.ContainsFunc(ca.CRL(t).RevokedCertificateEntries, func(e x509.RevocationListEntry) bool {
		return fmt.Sprintf("%032X", e.SerialNumber) == number
	})
}
