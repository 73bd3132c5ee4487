package users_test

import (
	"context"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins/internal/database"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault/internal/users"
)

// TestClock asks the databases themselves what time it is.
func TestClock(t *testing.T) {
	t.Parallel()
	pg, maria := servertest.StartPostgres(t), servertest.StartMariaDB(t)
	for kind, server := range map[string]*servertest.Database{database.Postgres: &pg.Database, database.MySQL: &maria.Database} {
		login, err := database.Config{
			Kind: kind, Addr: server.Addr, User: server.SuperUser, Database: map[string]string{database.Postgres: "postgres"}[kind], Plain: true,
			Password: func(context.Context) (secret.Value, error) { return secret.FromString(server.SuperPassword), nil },
		}.Open()
		if err != nil {
			t.Fatal(err)
		}
		asked := time.Now()
		got, err := users.Database{Login: login}.Clock(t.Context())
		if err != nil || got < asked.Unix() || got > time.Now().Unix() {
			t.Errorf("%s says that it is %d, %v; it was %d, and is %d", kind, got, err, asked.Unix(), time.Now().Unix())
		}
	}
}
