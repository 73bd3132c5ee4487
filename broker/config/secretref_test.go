package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stint-dev/stint/broker/config"
)

func TestParseSecretRef(t *testing.T) {
	for _, good := range []string{"file:///etc/key", "env://VAULT_SECRET_ID"} {
		if _, err := config.ParseSecretRef(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "hvs.secret", "file://hvs.secret", "file://", "env://", "env://hvs=secret", "https://hvs.secret"} {
		_, err := config.ParseSecretRef(bad)
		if err == nil {
			t.Errorf("%q was accepted", bad)
		} else if strings.Contains(err.Error(), "hvs") {
			t.Errorf("the error repeats what may be a secret: %v", err)
		}
	}
}

func TestSecretRefLoad(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string, mode os.FileMode) config.SecretRef {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return config.SecretRef("file://" + path)
	}
	t.Setenv("STINT_TEST_SECRET", "from env")

	for name, test := range map[string]struct {
		ref         config.SecretRef
		want, fault string
	}{
		"file":           {ref: write("a", "material\n", 0o600), want: "material"},
		"read only":      {ref: write("b", "material", 0o400), want: "material"},
		"group readable": {ref: write("c", "material", 0o640), fault: "mode 0640"},
		"world readable": {ref: write("d", "material", 0o604), fault: "mode 0604"},
		"empty":          {ref: write("e", "\n", 0o600), fault: "is empty"},
		"large":          {ref: write("f", strings.Repeat("x", 1<<20+1), 0o600), fault: "more than 1048576"},
		"folder":         {ref: config.SecretRef("file://" + dir), fault: "not a regular file"},
		"missing":        {ref: config.SecretRef("file://" + dir + "/x"), fault: "no such file"},
		"environment":    {ref: "env://STINT_TEST_SECRET", want: "from env"},
		"unset":          {ref: "env://STINT_TEST_UNSET", fault: "not set"},
		"inline":         {ref: "material", fault: "must not stand here"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := test.ref.Load()
			switch {
			case test.fault != "":
				if err == nil || !strings.Contains(err.Error(), test.fault) || strings.Contains(err.Error(), "material") {
					t.Errorf("got %v, want a fault: %s", err, test.fault)
				}
			case err != nil:
				t.Error(err)
			case string(got.Expose()) != test.want:
				t.Errorf("got another secret than %q", test.want)
			}
		})
	}
}

// systemd gives the service's user its credentials by an ACL, whose mask the mode shows as the group's bits.
func TestSecretRefCredentialsDirectory(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	if err := os.WriteFile(path, []byte("k"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	for mode, ok := range map[os.FileMode]bool{0o440: true, 0o444: false, 0o460: false} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := config.SecretRef("file://" + path).Load(); (err == nil) != ok {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
}
