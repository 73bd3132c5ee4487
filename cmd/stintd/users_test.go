package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/config"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// usersOf makes a login without any right, and returns the block that lets Stint list users with it.
func usersOf(t *testing.T, pg *servertest.Postgres) string {
	t.Helper()
	password := rand.Text()
	vaulttest.Exec(t, vaulttest.Connect(t, pg.SuperDSN("postgres")), fmt.Sprintf("CREATE ROLE stint_inventory LOGIN PASSWORD '%s'", password))
	path := t.TempDir() + "/password"
	write(t, path, password+"\n")
	return fmt.Sprintf(`database "orders" {
  url      = "postgres://stint_inventory@%s/postgres"
  password = "file://%s"
  users    = "v-%%"
  roles    = [%q]
}`, pg.Addr, path, dbRole)
}

// TestReconcileDatabaseUsers: the daemon lists the users of a database by itself, and tells those of its leases from one that
// somebody else made, one that is left over, and one that somebody dropped. A database that is down is no reason to call
// anything gone. Whom Vault has forgotten it names, with the lease that has ended by the record.
func TestReconcileDatabaseUsers(t *testing.T) {
	t.Parallel()
	pg := servertest.StartPostgres(t)
	f := vaultFor(t, servertest.StartVault(t, servertest.VaultOptions{}), pg)
	s := newSite(t, "", vaultBackend(f.Server, appRoleAuth(t, f), usersOf(t, pg))+"reconcile { every = \"1s\" }\n", catalog(limits{}, dbRole))
	d := s.start(t)
	task := declare(t, s.agent(t, agentPath), 10*time.Minute, dbRole)
	kept := issue(t, task, dbRole).Lease
	dropped := issue(t, task, dbRole).Lease
	admin := s.admin(t).Admin()
	inv := usersInventory(t, admin)
	if inv.GetHeld() != 2 || inv.GetMatched() != 2 || len(inv.GetDifferences())+len(inv.GetGaps()) != 0 {
		t.Fatalf("%v", inv)
	}

	super := vaulttest.Connect(t, pg.SuperDSN("postgres"))
	vaulttest.Exec(t, super, `CREATE ROLE "v-stray" LOGIN; CREATE ROLE "v-left" LOGIN VALID UNTIL '2001-01-01'; DROP ROLE "`+dropped.GetPublicRef()+`";`)
	inv = usersInventory(t, admin)
	var got []string
	for _, one := range inv.GetDifferences() {
		got = append(got, strings.TrimPrefix(one.GetKind().String(), "DIFFERENCE_KIND_")+" "+one.GetPublicRef()+" "+one.GetLease().GetName())
	}
	want := []string{"DEAD v-left ", "UNKNOWN v-stray ", "GONE " + dropped.GetPublicRef() + " " + dropped.GetName()}
	if strings.Join(got, "\n") != strings.Join(want, "\n") || inv.GetMatched() != 1 || inv.GetStrays() != 1 {
		t.Errorf("found %q, want %q: %v", got, want, inv)
	}

	toldOfUsers(t, s, d)
	pg.Stop(t)
	inv = usersInventory(t, admin)
	if len(inv.GetDifferences()) != 0 || len(inv.GetGaps()) != 1 || inv.GetGaps()[0].GetPermanent() {
		t.Errorf("with the database down: %v", inv)
	}

	forgetUsers(t, f, pg, admin, kept)
}

// toldOfUsers expects what the periodic run has found in the log, the records and the metrics.
func toldOfUsers(t *testing.T, s *site, d *daemon) {
	t.Helper()
	d.says(t, `"backend":"vault/main/orders","held":3,"unknown":1`)
	s.record(t, `1 unknown, 0 alive after their end, 1 gone, 1 dead and still there`)
	eventually(t, 20*time.Second, func() error {
		body := string(s.get(t, "/metrics"))
		for _, name := range []string{"unknown", "gone", "dead"} {
			if !strings.Contains(body, "stint_reconcile_"+name+`{backend="vault/main/orders"} 1`) {
				return errNotYet
			}
		}
		return nil
	})
}

// forgetUsers lets Vault drop its leases by force while the database is down, and with them what it knows of a user who lives
// on. Once the lease has ended by the record, the user is named.
func forgetUsers(t *testing.T, f *vaulttest.Fixture, pg *servertest.Postgres, admin stintv1.AdminServiceClient, kept *stintv1.Lease) {
	t.Helper()
	if err := f.Root.Sys().RevokeForceWithContext(t.Context(), "database/creds/stint-orders-ro"); err != nil {
		t.Fatal(err)
	}
	pg.Restart(t)
	if _, err := admin.Reconcile(t.Context(), &stintv1.ReconcileRequest{Backend: "vault/main", Settle: true}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, func() error {
		for _, one := range usersInventory(t, admin).GetDifferences() {
			if one.GetKind() == stintv1.DifferenceKind_DIFFERENCE_KIND_ENDED_ALIVE && one.GetPublicRef() == kept.GetPublicRef() &&
				one.GetLease().GetName() == kept.GetName() {
				return nil
			}
		}
		return errNotYet
	})
}

// usersInventory compares, and returns the inventory of the database.
func usersInventory(t *testing.T, admin stintv1.AdminServiceClient) *stintv1.Inventory {
	t.Helper()
	res, err := admin.Reconcile(t.Context(), &stintv1.ReconcileRequest{Backend: "vault/main"})
	if err != nil || len(res.GetInventories()) != 2 {
		t.Fatalf("%v, %v", res, err)
	}
	inv := res.GetInventories()[1]
	if inv.GetBackend() != "vault/main/orders" || inv.GetSource() != "users" {
		t.Fatalf("%v", inv)
	}
	return inv
}

// Each key of a database block has its row in docs/configuration.md.
func TestDatabaseKeysAreDocumented(t *testing.T) {
	t.Parallel()
	page := string(read(t, "../../docs/configuration.md"))
	_, ofStepCA, _ := strings.Cut(page, "\n## `backend \"stepca\"")
	for part, block := range map[string]reflect.Type{page: reflect.TypeFor[vaultDatabase](), ofStepCA: reflect.TypeFor[stepcaDatabase]()} {
		for field := range block.Fields() {
			key, kind, _ := strings.Cut(field.Tag.Get("hcl"), ",")
			if kind != "label" && key != "" && !strings.Contains(part, "\n| `"+key+"` | ") {
				t.Errorf("docs/configuration.md has no row for %s of %s", key, block)
			}
		}
	}
}

// What is wrong with a database block is told with its place.
func TestDatabaseBlocks(t *testing.T) {
	t.Parallel()
	const (
		head = `task_trust_domain = "tasks.example.org"
identity { workload_api = "unix:///api.sock" }
audit { origin = "o" }
backend "vault" "main" {
  address = "https://vault.example.org"
  auth "token" { file = "/token" }
`
		good = `  database "orders" {
    url      = "postgres://stint_inventory@db.example.org/postgres?sslmode=verify-full"
    password = "file:///password"
    users    = "v-%"
  }
`
	)
	for name, test := range map[string]struct{ blocks, want string }{
		"good":        {good, ""},
		"two":         {good + strings.Replace(good, "orders", "others", 1), ""},
		"twice":       {good + good, `stint.hcl:12: backend vault/main: database "orders" stands here a second time; the first is in line 7`},
		"a bad name":  {strings.Replace(good, "orders", "or/ders", 1), `stint.hcl:7: backend vault/main: database "or/ders": a name has`},
		"a bad URL":   {strings.Replace(good, "postgres://", "http://", 1), "stint.hcl:8: backend vault/main: url: unknown scheme"},
		"another key": {strings.Replace(good, "users ", "user ", 1), "stint.hcl:10: unsupported argument"},
		"a CA that is not there": {
			strings.Replace(good, "  }", "    ca_file = \"/nonexistent/ca.pem\"\n  }", 1), "backend vault/main: database orders: read ca_file",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg, err := config.Parse("stint.hcl", []byte(head+test.blocks+"}\n"), builtinNames()...)
			if err != nil {
				t.Fatal(err)
			}
			_, faults := openBackends(surroundings{cfg: cfg, logger: zap.NewNop()})
			if err := errors.Join(faults...); (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
}
