package config_test

import (
	"strings"
	"testing"

	"github.com/stint-dev/stint/broker/config"
)

func TestDatabaseURL(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]config.Database{
		"postgres://inventory@db.example.org/orders": {
			Kind: config.Postgres, Host: "db.example.org", Port: "5432", User: "inventory", Name: "orders", TLS: true,
		},
		"postgresql://inventory@db.example.org:5433?sslmode=verify-full": {
			Kind: config.Postgres, Host: "db.example.org", Port: "5433", User: "inventory", Name: "postgres", TLS: true,
		},
		"postgres://inventory@127.0.0.1/orders":                     {Kind: config.Postgres, Host: "127.0.0.1", Port: "5432", User: "inventory", Name: "orders"},
		"postgres://inventory@localhost/orders?sslmode=verify-full": {Kind: config.Postgres, Host: "localhost", Port: "5432", User: "inventory", Name: "orders", TLS: true},
		"postgres://inventory@localhost/orders":                     {Kind: config.Postgres, Host: "localhost", Port: "5432", User: "inventory", Name: "orders"},
		"mysql://inventory@db.example.org":                          {Kind: config.MySQL, Host: "db.example.org", Port: "3306", User: "inventory", TLS: true},
		"mysql://inventory@[::1]:3307/?tls=false":                   {Kind: config.MySQL, Host: "::1", Port: "3307", User: "inventory"},
	} {
		got, err := config.DatabaseURL(text).Parse()
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
}

func TestNamedDatabaseURL(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]config.Database{
		"postgres://inventory@db.example.org/stepca": {
			Kind: config.Postgres, Host: "db.example.org", Port: "5432", User: "inventory", Name: "stepca", TLS: true,
		},
		"mysql://inventory@127.0.0.1:3307/stepca": {Kind: config.MySQL, Host: "127.0.0.1", Port: "3307", User: "inventory", Name: "stepca"},
	} {
		got, err := config.NamedDatabaseURL(text).Parse()
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		"postgres://inventory@db.example.org":        "name the database",
		"mysql://inventory@db.example.org/":          "name the database",
		"mysql://inventory:hush@db.example.org/ca":   "a password must not stand here",
		"postgres://inventory@db/ca?sslmode=disable": "sslmode: only verify-full",
	} {
		if _, err := config.NamedDatabaseURL(text).Parse(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}

// databases is what a caller would decode.
type databases struct {
	Database []struct {
		Name     string             `hcl:"name,label"`
		URL      config.DatabaseURL `hcl:"url"`
		Password config.SecretRef   `hcl:"password"`
		Users    config.NamePattern `hcl:"users"`
	} `hcl:"database,block"`
}

// What is wrong with a database is told with its line, and without what may be a password.
func TestDatabaseFaults(t *testing.T) {
	t.Parallel()
	const (
		url      = `url = "postgres://a@db/x"`
		password = `password = "file:///p"`
		users    = `users = "v-%"`
	)
	for name, test := range map[string]struct{ url, password, users, want string }{
		"password in the URL": {`url = "postgres://a:hush@db/x"`, password, users, "c.hcl:9: backend vault/prod: url: a password must not stand here"},
		"or as an option":     {`url = "postgres://a@db/x?password=hush"`, password, users, "c.hcl:9: backend vault/prod: url: unknown option"},
		"a value":             {url, `password = "hush"`, users, "c.hcl:10: backend vault/prod: password: a secret must not stand here"},
		"no user":             {`url = "postgres://db/x"`, password, users, "c.hcl:9: backend vault/prod: url: write a user and a host"},
		"no host":             {`url = "postgres://a@/x"`, password, users, "c.hcl:9: backend vault/prod: url: write a user and a host"},
		"a fragment":          {`url = "postgres://a@db/x#hush"`, password, users, "c.hcl:9: backend vault/prod: url: write a user and a host"},
		"no URL":              {`url = "postgres://a@db:hush"`, password, users, "c.hcl:9: backend vault/prod: url: this is no URL"},
		"another scheme":      {`url = "oracle://a@db"`, password, users, "c.hcl:9: backend vault/prod: url: unknown scheme"},
		"not encrypted":       {`url = "postgres://a@db/x?sslmode=require"`, password, users, "c.hcl:9: backend vault/prod: url: sslmode: only verify-full"},
		"nor this":            {`url = "mysql://a@db?tls=false"`, password, users, "c.hcl:9: backend vault/prod: url: tls: only true"},
		"a database of MySQL": {`url = "mysql://a@db/x"`, password, users, "c.hcl:9: backend vault/prod: url: users are of the whole server"},
		"everybody":           {url, password, `users = "%"`, "c.hcl:11: backend vault/prod: users: pattern"},
		"nearly everybody":    {url, password, `users = "_%"`, "c.hcl:11: backend vault/prod: users: pattern"},
		"as good as all":      {url, password, `users = "%a%"`, "c.hcl:11: backend vault/prod: users: pattern"},
		"not a name":          {url, password, `users = "v a%"`, "c.hcl:11: backend vault/prod: users: pattern"},
		"no ASCII":            {url, password, `users = "vé%"`, "c.hcl:11: backend vault/prod: users: pattern"},
		"too long":            {url, password, `users = "` + strings.Repeat("v", 128) + `%"`, "c.hcl:11: backend vault/prod: users: pattern"},
		"one name":            {url, password, `users = "v-a"`, "c.hcl:11: backend vault/prod: users: pattern"},
		"escaped":             {url, password, `users = "v\\-%"`, "c.hcl:11: backend vault/prod: users: pattern"},
		"unknown key":         {url, password, users + "\nuser = 1", `c.hcl:12: unsupported argument: An argument named "user"`},
		"missing":             {url, password, "", `c.hcl:8: missing required argument: The argument "users"`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			body := "database \"orders\" {\n" + test.url + "\n" + test.password + "\n" + test.users + "\n}"
			var got databases
			err := config.DecodeBackend(backendOf(t, body), &got)
			if err == nil || !strings.HasPrefix(err.Error(), test.want) || strings.Contains(err.Error(), "hush") {
				t.Errorf("got %v, want %s", err, test.want)
			}
		})
	}
}
