package main

import (
	"fmt"
	"maps"
	"net"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stint-dev/stint/broker/config"
	"github.com/stint-dev/stint/plugins/servertest"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// TestBackendTexts: a backend is made anew when its block says something else or a file that it names does, and not for
// comments, white space and order.
func TestBackendTexts(t *testing.T) {
	t.Parallel()
	file := t.TempDir() + "/token"
	old := fmt.Sprintf(`
data_dir  = "/a"
backend "vault" "prod" {
  address = "https://a"
  auth "token" { file = %q }
}
backend "stepca" "internal" {}
`, file)
	object := fmt.Sprintf(`{"data_dir": "/a", "backend": {"vault": {"prod": {"address": "https://a", "auth": {"token": {"file": %q}}}},
		"stepca": {"internal": {"max_ttl": "1h", "mode": "embedded"}}}}`, file)
	list := fmt.Sprintf(`{"backend": [{"stepca": [{"internal": {"mode": "embedded", "max_ttl": "1h"}}]},
		{"vault": {"prod": {"auth": {"token": {"file": %q}}, "address": "https://a"}}}], "data_dir": "/b"}`, file)
	for name, tt := range map[string]struct {
		file, old, fresh, token string
		want                    []string
	}{
		"nothing":                    {old: old, fresh: old},
		"looks":                      {old: old, fresh: "# said\n" + strings.Replace(old, "address = \"https://a\"", "\n\taddress   =   \"https://a\" # so", 1)},
		"another key":                {old: old, fresh: strings.Replace(old, "/a", "/b", 1)},
		"in a block of it":           {old: old, fresh: strings.Replace(old, "/token", "/else", 1), want: []string{"vault/prod"}},
		"a file that it names":       {old: old, fresh: old, token: "rotated", want: []string{"vault/prod"}},
		"new and gone":               {old: old, fresh: strings.Replace(old, "internal", "other", 1), want: []string{"stepca/internal", "stepca/other"}},
		"JSON, in another order":     {file: "a.json", old: object, fresh: list},
		"JSON":                       {file: "a.json", old: object, fresh: strings.Replace(list, "1h", "2h", 1), want: []string{"stepca/internal"}},
		"JSON, a file that it names": {file: "a.json", old: object, fresh: list, token: "rotated", want: []string{"vault/prod"}},
	} {
		write(t, file, "token")
		before, err := backendTexts(tt.file, []byte(tt.old))
		if err != nil {
			t.Fatal(err)
		}
		write(t, file, "token"+tt.token)
		after, err := backendTexts(tt.file, []byte(tt.fresh))
		if err != nil {
			t.Fatal(err)
		}
		var changed []string
		for id := range after {
			if before[id] != after[id] {
				changed = append(changed, id)
			}
		}
		for id := range before {
			if _, ok := after[id]; !ok {
				changed = append(changed, id)
			}
		}
		slices.Sort(changed)
		if diff := cmp.Diff(tt.want, changed); diff != "" || len(before) != 2 {
			t.Errorf("%s: %s; %d backends", name, diff, len(before))
		}
	}
}

// TestFixedKeys: what takes a restart is named and stays as it was; the rest is taken.
func TestFixedKeys(t *testing.T) {
	t.Parallel()
	was, fresh := config.Default(), config.Default()
	fresh.DataDir, fresh.Limits.MaxMessage, fresh.Log.Format = "/elsewhere", config.MiB, "console"
	fresh.Log.Level, fresh.Teardown.StuckAfter, fresh.Audit.File = "debug", time.Minute, "/elsewhere"
	if diff := cmp.Diff([]string{"data_dir", "limits.max_message", "log.format"}, keepFixed(&fresh, &was)); diff != "" {
		t.Error(diff)
	}
	want := config.Default()
	want.Log.Level, want.Teardown.StuckAfter, want.Audit.File = "debug", time.Minute, "/elsewhere"
	if !reflect.DeepEqual(fresh, want) {
		t.Errorf("in force would be %+v", fresh)
	}
}

// TestEveryKeyIsTakenOrFixed: a key is either put in force by SIGHUP or named as one that takes a restart, and the page of
// the configuration says which.
func TestEveryKeyIsTakenOrFixed(t *testing.T) {
	t.Parallel()
	fixed := fixedKeys(&config.Config{})
	page := string(read(t, "../../docs/configuration.md"))
	section := ""
	for line := range strings.Lines(page) {
		if name, ok := strings.CutPrefix(line, "## "); ok {
			section = ""
			if strings.HasPrefix(name, "`") {
				section, _, _ = strings.Cut(strings.Trim(strings.Fields(name)[0], "`"), " ")
			}
		}
		cells := strings.Split(line, "|")
		if len(cells) < 5 || !strings.HasPrefix(strings.TrimSpace(cells[1]), "`") || section == "backend" {
			continue
		}
		key := strings.Trim(strings.TrimSpace(cells[1]), "`")
		if section != "" {
			key = section + "." + key
		}
		_, restart := fixed[key]
		want := map[bool]string{true: "restart", false: "SIGHUP"}[restart]
		if got := strings.TrimSpace(cells[3]); !strings.HasPrefix(got, want) {
			t.Errorf("%s: the page says %q, and it takes a %s", key, got, want)
		}
		delete(fixed, key)
	}
	delete(fixed, "ledger") // a label
	if len(fixed) > 0 {
		t.Errorf("keys that take a restart and are not on the page: %v", slices.Sorted(maps.Keys(fixed)))
	}
}

// TestHangupAndOtherKeys names a key that takes a restart, and ends read-only mode with the folder of resources.
func TestHangupAndOtherKeys(t *testing.T) {
	t.Parallel()
	s := newSite(t, "", embeddedCA, catalog(limits{}, certRole))
	d := s.start(t)
	client := s.agent(t, agentPath)
	text := string(read(t, s.file("stint.hcl")))
	missing := strings.Replace(text, s.file("resources.d"), s.file("nowhere"), 1)
	write(t, s.file("stint.hcl"), missing)
	d.signal(t, syscall.SIGHUP)
	d.says(t, "what was in force stays in force")

	text = strings.Replace(text, `role = "admin"`, `role = "auditor"`, 1)
	var kept []string
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "resources =") {
			kept = append(kept, line)
		}
	}
	write(t, s.file("stint.hcl"), strings.Join(kept, "")+"\nlimits { handshake_timeout = \"9s\" }\n")
	d.signal(t, syscall.SIGHUP)
	d.says(t, `"msg":"reloaded"`)
	d.says(t, `"key":"limits.handshake_timeout"`)
	if log := d.log(t); strings.Contains(log, `"key":"data_dir"`) || strings.Contains(log, `"key":"resources"`) || strings.Contains(log, `"key":"admins`) {
		t.Errorf("a key is named that did not change, or takes no restart:\n%s", tail(log))
	}
	issue(t, declare(t, client, 5*time.Minute, certRole), certRole)
	documents := []*stintv1.Document{{Yaml: catalog(limits{}, certRole)}}
	if _, err := s.admin(t).Admin().Apply(t.Context(), &stintv1.ApplyRequest{Documents: documents}); err != nil {
		t.Errorf("apply once there is no folder of resources: %v", err)
	}
}

// TestHangupBeforeReady waits for an identity, and is not ended by SIGHUP meanwhile.
func TestHangupBeforeReady(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", dir+"/api.sock")
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, "identity { workload_api = \"unix://"+dir+"/api.sock\" }\n", embeddedCA, catalog(limits{}, certRole))
	d := launch(t, s.dir, "serve", "--config", s.file("stint.hcl"))
	c, err := l.Accept() // it asks for its identity
	if err != nil {
		t.Fatal(err)
	}
	d.signal(t, syscall.SIGHUP)
	d.signal(t, syscall.SIGTERM)
	if code := d.wait(t, time.Minute); code != exitFault {
		t.Errorf("stintd exits with %d: %s", code, tail(d.log(t)))
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// TestSecondSignal ends a stintd at once that waits for a revocation under way.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	ca := servertest.StartStepCA(t, servertest.StepCAOptions{})
	s := newSite(t, "", remoteCA(t, ca), catalog(limits{}, remoteRole))
	d := s.start(t)
	task := declare(t, s.agent(t, agentPath), 5*time.Minute, remoteRole)
	name := issue(t, task, remoteRole).Lease.GetName()
	ca.Pause(t)
	defer ca.Resume(t)
	if _, err := task.Complete(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		if s.ledger(t).leases[name].ClaimUntil.IsZero() {
			return errNotYet
		}
		return nil
	})
	d.signal(t, syscall.SIGTERM)
	d.says(t, "stopping; open tasks")
	eventually(t, 10*time.Second, func() error { // what comes in the same instant as the first may count as the first
		d.signal(t, syscall.SIGTERM)
		select {
		case <-d.exited:
			return nil
		default:
			return errNotYet
		}
	})
	if state, ok := d.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || state.Signal() != syscall.SIGTERM {
		t.Errorf("it ended by %v", d.cmd.ProcessState)
	}
}
