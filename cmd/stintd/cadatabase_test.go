package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/config"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// TestReconcileStolenKey has a certificate signed by step-ca with the provisioner's key, past the broker. The broker sees it in
// step-ca's database, and revokes it when told to.
func TestReconcileStolenKey(t *testing.T) {
	t.Parallel()
	pg := servertest.StartPostgres(t)
	ca := servertest.StartStepCA(t, servertest.StepCAOptions{Database: "postgresql", Source: pg.SuperDSN("")})
	password, file := rand.Text(), t.TempDir()+"/password"
	write(t, file, password+"\n")
	db := vaulttest.Connect(t, pg.SuperDSN("stepca"))
	vaulttest.Exec(t, db, fmt.Sprintf("CREATE ROLE stint_inventory LOGIN PASSWORD '%s'", password))
	vaulttest.Exec(t, db, "GRANT SELECT (nvalue) ON x509_certs TO stint_inventory")
	block := fmt.Sprintf("  database {\n    url = \"postgres://stint_inventory@%s/stepca\"\n    password = \"file://%s\"\n  }", pg.Addr, file)
	s := newSite(t, "", remoteCA(t, ca, block), catalog(limits{}, remoteRole))
	s.start(t)
	issue(t, declare(t, s.agent(t, agentPath), 10*time.Minute, remoteRole), remoteRole)
	stolen := stealFrom(t, ca)

	admin := s.admin(t).Admin()
	compare := func(revoke bool) *stintv1.Inventory {
		t.Helper()
		res, err := admin.Reconcile(t.Context(), &stintv1.ReconcileRequest{RevokeUnknown: revoke})
		if err != nil {
			t.Fatal(err)
		}
		return res.GetInventories()[0]
	}
	eventually(t, 3*time.Minute, func() error { // until it is older than the grace
		inv := compare(false)
		if inv.GetInFlight() > 0 {
			return errNotYet
		}
		if found := unknownOf(inv); len(found) != 1 || found[0] != stolen || inv.GetMatched() != 1 {
			t.Errorf("%v, want %s", inv, stolen)
		}
		return nil
	})
	if inv := compare(true); inv.GetUnknown() != 1 || inv.GetStrays() != 0 {
		t.Errorf("%v", inv)
	}
	if inv := compare(false); inv.GetUnknown() != 0 || inv.GetMatched() != 1 {
		t.Errorf("revoked: %v", inv)
	}
	for _, e := range ca.CRL(t).RevokedCertificateEntries {
		if fmt.Sprintf("%032X", e.SerialNumber) == stolen {
			return
		}
	}
	t.Error("what was revoked is not on step-ca's CRL")
}

// stealFrom has a certificate signed with the provisioner's key, and returns its serial number.
func stealFrom(t *testing.T, ca *servertest.StepCA) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	id := uuid.Must(uuid.NewV7())
	cred, err := holderOf(t, ca).Issue(t.Context(), plugins.Request{
		Lease: plugins.LeaseID(id), TaskID: id.String(), TaskName: "theft", Agent: "spiffe://example.org/thief", CSR: csr, NotAfter: time.Now().Add(10 * time.Minute),
		Role: plugins.Role{Name: "stolen", Config: []byte(`{}`)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(cred.Handle)
}

// What is wrong with the database of a CA is told.
func TestDatabaseOfStepCA(t *testing.T) {
	t.Parallel()
	const good = `  database {
    url      = "postgres://stint_inventory@db.example.org/stepca"
    password = "file:///password"
  }
`
	ca := unstartedCA(t)
	with := func(old, instead string) string { return remoteCA(t, ca, strings.Replace(good, old, instead, 1)) }
	for name, test := range map[string]struct{ block, want string }{
		"good":                   {with("", ""), ""},
		"two":                    {remoteCA(t, ca, good, good), "duplicate database block"},
		"no name":                {with("/stepca", ""), "backend stepca/remote: url: name the database"},
		"a password":             {with("file:///password", "hush"), "backend stepca/remote: password: a secret must not stand here"},
		"a CA that is not there": {with("  }", "    ca_file = \"/nonexistent/ca.pem\"\n  }"), "database: read ca_file"},
		"embedded":               {"backend \"stepca\" \"internal\" {\n" + good + "}\n", "backend stepca/internal: database: an embedded CA has none"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			head := fmt.Sprintf("data_dir = %q\ntask_trust_domain = \"tasks.example.org\"\nidentity { workload_api = \"unix:///api.sock\" }\naudit { origin = \"o\" }\n", t.TempDir())
			cfg, err := config.Parse("stint.hcl", []byte(head+test.block), builtinNames()...)
			if err != nil {
				t.Fatal(err)
			}
			_, faults := openBackends(surroundings{cfg: cfg, logger: zap.NewNop()})
			said := strings.ToLower(fmt.Sprint(errors.Join(faults...)))
			if (len(faults) == 0) != (test.want == "") || !strings.Contains(said, strings.ToLower(test.want)) || strings.Contains(said, "hush") {
				t.Errorf("got %s, want %s", said, test.want)
			}
		})
	}
}

// unstartedCA is a step-ca that nobody has started.
func unstartedCA(t *testing.T) *servertest.StepCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &servertest.StepCA{
		URL: "https://ca.example.org", RootPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), Provisioner: "stint",
		ProvisionerKey: jose.JSONWebKey{Key: key, KeyID: "stint-1", Algorithm: string(jose.ES256), Use: "sig"},
	}
}
