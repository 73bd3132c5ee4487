package main

import (
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stint-dev/stint/plugins/servertest"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// TestChangedKeys names what differs, and nothing for comments, white space and order.
func TestChangedKeys(t *testing.T) {
	t.Parallel()
	const old = `
data_dir  = "/a"
resources = "/r"
log { level = "info" }
admins "spiffe://example.org/ops/*" { role = "admin" }
backend "vault" "prod" {
  address = "https://a"
  auth "jwt" { role = "stint" }
}
`
	for name, tt := range map[string]struct {
		file, old, fresh string
		want             []string
	}{
		"nothing":      {old: old, fresh: old},
		"resources":    {old: old, fresh: strings.Replace(old, "/r", "/s", 1)},
		"looks":        {old: old, fresh: "# said\nlog {\n level   =  \"info\" # so\n}\n" + strings.Replace(old, "log { level = \"info\" }\n", "", 1)},
		"in a backend": {old: old, fresh: strings.Replace(old, `"stint"`, `"else"`, 1), want: []string{"backend vault prod"}},
		"an administrator": {
			old: old, fresh: strings.Replace(old, "ops/*", "ops/**", 1),
			want: []string{"admins spiffe://example.org/ops/*", "admins spiffe://example.org/ops/**"},
		},
		"new and gone": {old: old, fresh: "limits {}\n" + strings.Replace(old, `data_dir  = "/a"`, "", 1), want: []string{"data_dir", "limits"}},
		"JSON": {
			file: "a.json", old: `{"data_dir": "/a", "log": {"level": "info"}, "limits": {}}`,
			fresh: `{"log": {"level":"warn"}, "limits": {}, "data_dir":"/a"}`, want: []string{"log"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			before, err := topLevelOf(tt.file, []byte(tt.old))
			if err != nil {
				t.Fatal(err)
			}
			after, err := topLevelOf(tt.file, []byte(tt.fresh))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, after.changedSince(before)); diff != "" {
				t.Error(diff)
			}
		})
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
	d.says(t, `"key":"admins spiffe://example.org/ops/*"`)
	d.says(t, `"key":"limits"`)
	if log := d.log(t); strings.Contains(log, `"key":"data_dir"`) || strings.Contains(log, `"key":"resources"`) {
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
