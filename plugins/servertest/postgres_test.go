package servertest_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/stint-dev/stint/plugins/servertest"
)

func exec(t *testing.T, dsn, statement string) error {
	t.Helper()
	connection, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		return err
	}
	_, err = connection.Exec(t.Context(), statement)
	if closing := connection.Close(t.Context()); closing != nil {
		t.Error(closing)
	}
	return err
}

func TestPostgresChecksPasswordsAndRestarts(t *testing.T) {
	postgres := servertest.StartPostgres(t)
	if err := exec(t, postgres.SuperDSN("postgres"), "CREATE ROLE someone LOGIN PASSWORD 'right'"); err != nil {
		t.Fatal(err)
	}
	for _, restart := range []func(){
		func() {},
		func() { postgres.Stop(t); postgres.Restart(t) },
		func() { postgres.Kill(t); postgres.Restart(t) },
	} {
		restart()
		if err := exec(t, postgres.DSN("someone", "right", "postgres"), "SELECT 1"); err != nil {
			t.Error(err)
		}
		if err := exec(t, postgres.DSN("someone", "wrong", "postgres"), "SELECT 1"); err == nil {
			t.Error("a wrong password logged in")
		}
	}
	postgres.Stop(t)
	if err := exec(t, postgres.SuperDSN("postgres"), "SELECT 1"); err == nil {
		t.Error("a stopped postgres answered")
	}
}

func TestSharedIsStartedOnce(t *testing.T) {
	if one, two := servers.Postgres(t), servers.Postgres(t); one != two {
		t.Error("two shared servers")
	}
	if one, two := servers.StepCA(t), servers.StepCA(t); one != two {
		t.Error("two shared servers")
	}
}
