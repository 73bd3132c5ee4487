package servertest_test

import (
	"strings"
	"testing"

	"github.com/stint-dev/stint/plugins/servertest"
)

func TestMariaDBChecksPasswordsAndStops(t *testing.T) {
	m := servertest.StartMariaDB(t)
	client := m.Client(t)
	client.Stdin = strings.NewReader("CREATE USER 'someone'@'%' IDENTIFIED BY 'right';")
	if out, err := client.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := m.Open(t, "someone", "right", "").PingContext(t.Context()); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"someone", m.SuperUser, "root", ""} {
		if err := m.Open(t, name, "", "").PingContext(t.Context()); err == nil {
			t.Errorf("%q logged in without a password", name)
		}
	}
	m.Stop(t)
	if err := m.Super(t).PingContext(t.Context()); err == nil {
		t.Error("a stopped mariadb answered")
	}
}
