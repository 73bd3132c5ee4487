package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/brokertest"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/reconcile"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/broker/status"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/stepca"
	"github.com/stint-dev/stint/plugins/vault"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// taken takes a credential from Vault as root, and returns its lease.
func taken(tb testing.TB, f *vaulttest.Fixture, path string) string {
	tb.Helper()
	secret, err := f.Root.Logical().ReadWithContext(tb.Context(), path)
	if err != nil {
		tb.Fatal(err)
	}
	return secret.LeaseID
}

// others takes a one-time password of another Vault role on a mount that Stint uses too.
func others(tb testing.TB, f *vaulttest.Fixture) string {
	tb.Helper()
	root := f.Root.Logical()
	_, err := root.WriteWithContext(tb.Context(), "ssh/roles/others", map[string]any{
		"key_type": "otp", "default_user": "ubuntu", "cidr_list": "10.0.0.0/8",
	})
	if err != nil {
		tb.Fatal(err)
	}
	secret, err := root.WriteWithContext(tb.Context(), "ssh/creds/others", map[string]any{"ip": "10.0.0.9"})
	if err != nil {
		tb.Fatal(err)
	}
	return secret.LeaseID
}

// alive reports whether Vault has a lease.
func alive(tb testing.TB, f *vaulttest.Fixture, id string) bool {
	tb.Helper()
	path := id[:strings.LastIndexByte(id, '/')]
	return slices.Contains(f.Leases(tb, path), id)
}

// A credential that somebody took under Stint's Vault role is found and ended only when told; one of another Vault role
// beside it is never seen.
func TestReconcileVaultUnknown(t *testing.T) {
	t.Parallel()
	f := vaultFor(t, servertest.StartVault(t, servertest.VaultOptions{}), servers.Postgres(t))
	cfg := f.Config()
	cfg.Instance, cfg.MaxRequestDuration = "vault/main", time.Second
	backend, err := vault.New(cfg, zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	backends := map[string]plugins.Backend{"vault/main": backend}
	h := brokertest.Start(t, brokertest.Config{Backends: backends, Resources: catalog(limits{}, dbRole, otpRole)})
	client := h.As(t, agentPath)
	client.Issue(t, client.Declare(t, dbRole), dbRole)
	unknown, foreign := taken(t, f, "database/creds/stint-orders-ro"), others(t, f)

	rec := reconcile.New(reconcile.Config{
		Ledger: h.Ledger, Roles: func() []resource.Role { return h.Broker.Catalog().Engine().Set().Roles() },
		Backends: h.Broker.Catalog().Backends,
		Meter:    (*status.Metrics)(nil), Logger: zaptest.NewLogger(t),
	})
	compare := func(o reconcile.Order) reconcile.Inventory {
		t.Helper()
		o.Actor = audit.Actor{ID: "spiffe://example.org/ops/alice"}
		got, err := rec.Reconcile(t.Context(), o)
		if err != nil || len(got) != 1 || got[0].Held != 2 || got[0].Matched != 1 || len(got[0].Gaps) != 0 {
			t.Fatalf("Reconcile returned %+v, %v", got, err)
		}
		return got[0]
	}
	var inv reconcile.Inventory
	eventually(t, 20*time.Second, func() error { // until it is older than the horizon
		if inv = compare(reconcile.Order{}); len(inv.Findings) == 0 {
			return errNotYet
		}
		return nil
	})
	wantUnknown(t, inv.Findings, unknown)
	if !alive(t, f, unknown) {
		t.Fatal("it was revoked without being told to")
	}
	inv = compare(reconcile.Order{RevokeUnknown: true})
	if inv.Findings[0].Outcome != reconcile.Revoked || inv.Findings[0].Proof != plugins.ReadBack || alive(t, f, unknown) {
		t.Errorf("not revoked: %+v", inv.Findings)
	}
	if !alive(t, f, foreign) || len(f.Leases(t, "database/creds/stint-orders-ro")) != 1 {
		t.Error("another lease was ended too")
	}
}

// wantUnknown expects exactly one finding, an unknown lease.
func wantUnknown(t *testing.T, found []reconcile.Finding, id string) {
	t.Helper()
	if len(found) != 1 || found[0].Kind != reconcile.Unknown || !strings.HasSuffix(found[0].Key, " "+id) || found[0].NotAfter.Before(time.Now()) {
		t.Fatalf("found %+v", found)
	}
}

// The daemon tells what an administrator of Vault has revoked behind its back, and settles it when told to.
func TestReconcileVaultGone(t *testing.T) {
	t.Parallel()
	f := vaultFor(t, servertest.StartVault(t, servertest.VaultOptions{}), servers.Postgres(t))
	s := newSite(t, "", vaultBackend(f.Server, appRoleAuth(t, f))+embeddedCA+"reconcile { every = \"1s\" }\n", catalog(limits{}, dbRole, certRole))
	d := s.start(t)
	task := declare(t, s.agent(t, agentPath), 10*time.Minute, dbRole, certRole)
	cred := issue(t, task, dbRole)
	issue(t, task, dbRole)
	issue(t, task, certRole)
	taken(t, f, "database/creds/stint-orders-ro") // in flight, for all that can be known
	leases := f.Leases(t, "database/creds/stint-orders-ro")
	admin := s.admin(t).Admin()
	gone := cred.Lease.GetName()
	revokeBehind(t, f, admin, gone, leases)

	oneGone(t, admin, gone)
	d.says(t, `"msg":"a backend has lost credentials that should be alive; see stint reconcile"`) // by the periodic run
	body := string(s.get(t, "/metrics"))
	for _, line := range []string{
		`stint_reconcile_gone{backend="vault/main"} 1`, `stint_reconcile_unknown{backend="vault/main"} 0`,
		`stint_reconcile_last_run_timestamp_seconds{backend="stepca/internal"}`,
	} {
		if !strings.Contains(body, line) {
			t.Errorf("metrics lack %s", line)
		}
	}

	if _, err := admin.Reconcile(t.Context(), &stintv1.ReconcileRequest{Backend: "vault/main", Settle: true}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error {
		l, err := s.admin(t).Credentials().GetLease(t.Context(), &stintv1.GetLeaseRequest{Name: gone})
		if err != nil || l.GetState() != stintv1.LeaseState_LEASE_STATE_REVOKED || l.GetProof() != string(plugins.LostAtBackend) {
			return errNotYet
		}
		return nil
	})
}

// oneGone expects that one lease is gone from Vault, one matches, and one may be in flight; and nothing of the CA.
func oneGone(t *testing.T, admin stintv1.AdminServiceClient, gone string) {
	t.Helper()
	res, err := admin.Reconcile(t.Context(), &stintv1.ReconcileRequest{RevokeUnknown: true})
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]*stintv1.Inventory{}
	for _, inv := range res.GetInventories() {
		byName[inv.GetBackend()] = inv
	}
	inv := byName["vault/main"]
	if inv.GetHeld() != 2 || inv.GetMatched() != 1 || inv.GetInFlight() != 1 || inv.GetGone() != 1 || inv.GetStrays() != 0 ||
		len(inv.GetDifferences()) != 1 || inv.GetDifferences()[0].GetLease().GetName() != gone {
		t.Fatalf("%v", inv)
	}
	if ca := byName["stepca/internal"]; ca.GetSource() != "crl+list" || len(ca.GetDifferences()) != 0 || len(ca.GetGaps()) != 0 {
		t.Errorf("%v", ca)
	}
}

// revokeBehind revokes at Vault what Stint knows as the lease of a name.
func revokeBehind(t *testing.T, f *vaulttest.Fixture, admin stintv1.AdminServiceClient, name string, leases []string) {
	t.Helper()
	i := slices.IndexFunc(leases, func(id string) bool {
		who, err := admin.WhoIs(t.Context(), &stintv1.WhoIsRequest{Query: id})
		return err == nil && who.GetLease().GetName() == name
	})
	if i < 0 {
		t.Fatalf("%s is none of %v", name, leases)
	}
	if err := f.Root.Sys().RevokeWithContext(t.Context(), leases[i]); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		if alive(t, f, leases[i]) {
			return errNotYet
		}
		return nil
	})
}

// A certificate that was revoked at a step-ca by somebody else is on its CRL, and so gone.
func TestReconcileStepCA(t *testing.T) {
	t.Parallel()
	ca := servertest.StartStepCA(t, servertest.StepCAOptions{})
	s := newSite(t, "", remoteCA(t, ca), catalog(limits{}, remoteRole))
	s.start(t)
	task := declare(t, s.agent(t, agentPath), 10*time.Minute, remoteRole)
	cred, other := issue(t, task, remoteRole), issue(t, task, remoteRole)
	revokeAt(t, ca, cred.Lease)

	admin := s.admin(t).Admin()
	eventually(t, 60*time.Second, func() error { // until the broker has fetched the CRL
		res, err := admin.Reconcile(t.Context(), &stintv1.ReconcileRequest{})
		if err != nil {
			return err
		}
		inv := res.GetInventories()[0]
		if inv.GetGone() == 0 {
			return errNotYet
		}
		if inv.GetSource() != "crl+list" || inv.GetStrays() != 0 || len(inv.GetDifferences()) != 1 ||
			inv.GetDifferences()[0].GetLease().GetName() != cred.Lease.GetName() {
			t.Errorf("%v", inv)
		}
		return nil
	})
	if _, err := admin.Reconcile(t.Context(), &stintv1.ReconcileRequest{Settle: true}); err != nil {
		t.Fatal(err)
	}
	credentials := s.admin(t).Credentials()
	eventually(t, 20*time.Second, func() error {
		l, err := credentials.GetLease(t.Context(), &stintv1.GetLeaseRequest{Name: cred.Lease.GetName()})
		if err != nil || l.GetProof() != string(plugins.OnCRL) {
			return errNotYet
		}
		return nil
	})
	l, err := credentials.GetLease(t.Context(), &stintv1.GetLeaseRequest{Name: other.Lease.GetName()})
	if err != nil || l.GetState() != stintv1.LeaseState_LEASE_STATE_ACTIVE {
		t.Errorf("the other one is %v, %v", l.GetState(), err)
	}
}

// revokeAt revokes a certificate at a step-ca with the provisioner's key, as whoever else has it could.
func revokeAt(t *testing.T, ca *servertest.StepCA, l *stintv1.Lease) {
	t.Helper()
	id, err := lease.ParseID(strings.TrimPrefix(l.GetName(), "leases/"))
	if err != nil {
		t.Fatal(err)
	}
	end, err := holderOf(t, ca).Revoke(t.Context(), plugins.Held{Lease: id, NotAfter: l.GetNotAfter().AsTime()})
	if err != nil || end.Proof != plugins.OnCRL {
		t.Fatalf("revoke at the CA: %+v, %v", end, err)
	}
}

// holderOf is whoever else has the provisioner's key.
func holderOf(t *testing.T, ca *servertest.StepCA) *stepca.Backend {
	t.Helper()
	key, err := json.Marshal(ca.ProvisionerKey)
	if err != nil {
		t.Fatal(err)
	}
	backend, err := stepca.New(stepca.Config{
		Instance: "stepca/remote", Mode: stepca.Remote, TaskTrustDomain: "tasks.example.org",
		Remote: stepca.RemoteConfig{
			URL: ca.URL, RootPEM: ca.RootPEM, Provisioner: ca.Provisioner, Key: secret.New(key), DataDir: t.TempDir(),
		},
	}, zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	return backend
}
