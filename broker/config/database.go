package config

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
)

// The kinds of databases that a DatabaseURL names.
const (
	Postgres = "postgres"
	MySQL    = "mysql" // MariaDB too
)

// DatabaseURL says where a database is, and as whom to log in: postgres://user@host:port/database, or mysql://user@host:port.
// It holds no password. Other machines are spoken to over TLS that is verified; on a loopback address there is none unless
// sslmode=verify-full or tls=true ask for it.
type DatabaseURL string

// Database is what a DatabaseURL says.
type Database struct {
	Kind string // Postgres or MySQL
	Host string
	Port string
	User string
	Name string // of the database to connect to; "" for MySQL
	TLS  bool
}

// Addr returns host and port.
func (d Database) Addr() string { return net.JoinHostPort(d.Host, d.Port) }

func (u DatabaseURL) check() error {
	_, err := u.Parse()
	return err
}

// Parse reads the URL. Its error never repeats it: somebody may have written a password into it.
func (u DatabaseURL) Parse() (Database, error) {
	d, err := parseDatabase(string(u))
	switch {
	case err == nil && d.Kind == Postgres:
		d.Name = cmp.Or(d.Name, "postgres")
	case err == nil && d.Name != "":
		return Database{}, errors.New("users are of the whole server: leave the name of a database out")
	}
	return d, err
}

// NamedDatabaseURL is a DatabaseURL that has to name a database, whatever its kind: mysql://user@host:port/database.
type NamedDatabaseURL string

func (u NamedDatabaseURL) check() error {
	_, err := u.Parse()
	return err
}

// Parse is as that of a DatabaseURL.
func (u NamedDatabaseURL) Parse() (Database, error) {
	d, err := parseDatabase(string(u))
	if err == nil && d.Name == "" {
		return Database{}, errors.New("name the database, as in postgres://stint_inventory@db.example.org/stepca")
	}
	return d, err
}

func parseDatabase(text string) (Database, error) {
	parsed, err := url.Parse(text)
	if err != nil {
		return Database{}, errors.New("this is no URL; write postgres://user@host:port/database or mysql://user@host:port")
	}
	d := Database{Host: parsed.Hostname(), Port: parsed.Port(), User: parsed.User.Username()}
	if _, given := parsed.User.Password(); given {
		return Database{}, errors.New("a password must not stand here; the key password says where it is")
	}
	if d.Host == "" || d.User == "" || parsed.Fragment != "" {
		return Database{}, errors.New("write a user and a host, as in postgres://stint_inventory@db.example.org/postgres")
	}
	d.Name = strings.Trim(parsed.Path, "/")
	option := tlsOption{name: "sslmode", on: "verify-full", off: "disable"}
	switch parsed.Scheme {
	case "postgres", "postgresql":
		d.Kind, d.Port = Postgres, cmp.Or(d.Port, "5432")
	case "mysql":
		d.Kind, d.Port, option = MySQL, cmp.Or(d.Port, "3306"), tlsOption{name: "tls", on: "true", off: "false"}
	default:
		return Database{}, errors.New("unknown scheme; there are postgres and mysql")
	}
	d.TLS, err = option.read(parsed.Query(), loopback(d.Host))
	return d, err
}

// tlsOption is the one option of a URL, in the words that a kind of database has for it.
type tlsOption struct{ name, on, off string }

func (o tlsOption) read(query url.Values, local bool) (bool, error) {
	for key := range query {
		if key != o.name {
			return false, fmt.Errorf("unknown option; there is %s", o.name)
		}
	}
	switch value := query.Get(o.name); {
	case value == o.on, value == "" && !local:
		return true, nil
	case value == "", value == o.off && local:
		return false, nil
	}
	return false, fmt.Errorf("%s: only %s is possible, or on a loopback address %s", o.name, o.on, o.off)
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}

// NamePattern is a pattern of names as LIKE has it in SQL: % is any text, _ any character. It begins with a letter or a digit, so that
// it does not take in whatever there is, and ends with %.
type NamePattern string

func (p NamePattern) check() error {
	begin, _ := strings.CutSuffix(string(p), "%")
	ok := begin != string(p) && begin != "" && len(p) <= 128 && !strings.HasPrefix(begin, "_") && !strings.HasPrefix(begin, "%")
	if !ok || strings.ContainsFunc(begin, func(r rune) bool { return r <= ' ' || r > '~' || r == '\\' }) {
		return fmt.Errorf("pattern %q: write the beginning that Vault gives to names, and %%, as in v-%%", string(p))
	}
	return nil
}
