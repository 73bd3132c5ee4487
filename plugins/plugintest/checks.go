package plugintest

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
)

// unknownKey is put into a role to see it refused.
const unknownKey = "plugintest_no_such_key"

// maxHandle is the longest handle in bytes.
const maxHandle = 4 << 10

// descriptor checks that it is complete and constant.
func (s *suite) descriptor(t *testing.T) {
	d := s.Backend.Descriptor()
	if d.Type == "" || d.Section == "" || d.Horizon < 0 {
		t.Errorf("descriptor is incomplete: %+v", d)
	}
	if _, ok := s.Backend.(plugins.Preparer); !ok && !d.HandleIsLeaseID && d.Horizon > 0 {
		t.Errorf("issuing has side effects, yet no handle is known beforehand: neither Preparer nor HandleIsLeaseID: %+v", d)
	}
	s.issue(t)
	if again := s.Backend.Descriptor(); again != d {
		t.Errorf("descriptor changed from %+v to %+v", d, again)
	}
}

// roles checks that CheckRole is steady and refuses what it must.
func (s *suite) roles(t *testing.T) {
	again, err := s.Backend.CheckRole(s.Role)
	if err != nil || !reflect.DeepEqual(again, s.info) {
		t.Errorf("CheckRole said %+v, then %+v, %v", s.info, again, err)
	}
	if s.info.Ends == plugins.EndsUnknown || s.info.Exposure.Reason == "" {
		t.Errorf("role info does not say how it ends or why the exposure is so: %+v", s.info)
	}
	bad := map[string]plugins.Role{"unknown key": s.roleWithUnknownKey(t)}
	broken := s.Role
	broken.Config = []byte(`{`)
	bad["damaged JSON"] = broken
	maps.Copy(bad, s.BadRoles)
	for name, role := range bad {
		_, err := s.Backend.CheckRole(role)
		if !errors.Is(err, plugins.ErrInvalidRole) {
			t.Errorf("%s: CheckRole said %v, want ErrInvalidRole", name, err)
		} else if name == "unknown key" && !strings.Contains(err.Error(), unknownKey) {
			t.Errorf("%s: the error does not name it: %v", name, err)
		}
	}
}

func (s *suite) roleWithUnknownKey(t *testing.T) plugins.Role {
	t.Helper()
	config := map[string]any{}
	if len(s.Role.Config) > 0 {
		if err := json.Unmarshal(s.Role.Config, &config); err != nil {
			t.Fatalf("the harness's role is no JSON object: %v", err)
		}
	}
	config[unknownKey] = true
	role := s.Role
	var err error
	if role.Config, err = json.Marshal(config); err != nil {
		t.Fatalf("encode role: %v", err)
	}
	return role
}

// life issues, uses, revokes, and revokes again.
func (s *suite) life(t *testing.T) {
	got := s.issue(t)
	s.checkCredential(t, got)
	end := s.revoke(t, got.held())
	s.checkEnded(t, got, end)
	again := s.revoke(t, got.held())
	s.checkEnded(t, got, again)
	for _, text := range []string{string(got.cred.Handle), got.cred.PublicRef, end.Detail, again.Detail, string(got.req.Prepared.Handle)} {
		checkNoSecret(t, text, got)
	}
}

// checkEnded checks that a revocable credential stopped to work.
func (s *suite) checkEnded(t *testing.T, got issued, end plugins.Ending) {
	t.Helper()
	if s.info.Ends == plugins.EndsRevocable && s.Works(s.context(t), got.cred) {
		t.Errorf("%s still works although Revoke said %s", got.cred.PublicRef, end.Proof)
	}
	if s.info.Ends == plugins.EndsRevocable && end.Proof == plugins.NotIssued {
		t.Error("Revoke of what was issued said that it never was")
	}
	if s.info.Exposure.Bounded && s.info.Ends == plugins.EndsRevocable {
		if latest := end.At.Add(s.info.Exposure.Max + time.Second); end.UsableUntil.After(latest) {
			t.Errorf("usable until %v, which is beyond the stated exposure of %s", end.UsableUntil, s.info.Exposure.Max)
		}
	}
}

// checkCredential checks its shape against what CheckRole promised.
func (s *suite) checkCredential(t *testing.T, got issued) {
	t.Helper()
	cred := got.cred
	if cred.Handle == "" || len(cred.Handle) > maxHandle {
		t.Errorf("handle of %d bytes, want 1 to %d", len(cred.Handle), maxHandle)
	}
	if cred.PublicRef == "" {
		t.Error("no public reference")
	}
	if s.info.NeedsCSR != (len(cred.Chain) > 0) || s.info.NeedsCSR != (len(cred.Bundle) > 0) || s.info.NeedsCSR == (len(cred.Fields) > 0) {
		t.Errorf("%d certificates, %d roots and %d fields for a role whose NeedsCSR is %t", len(cred.Chain), len(cred.Bundle), len(cred.Fields), s.info.NeedsCSR)
	}
	for _, name := range s.info.Fields {
		if v, ok := cred.Fields[name]; !ok || v.IsZero() {
			t.Errorf("field %q is promised and missing", name)
		}
	}
	if (s.info.Ends == plugins.EndsNever) != cred.NotAfter.IsZero() {
		t.Errorf("not after is %v for a role that ends by kind %d", cred.NotAfter, s.info.Ends)
	}
	if s.info.Ends == plugins.EndsNever && !cred.UsableUntil.Equal(plugins.NoEnd()) {
		t.Errorf("usable at worst until %v, and it never ends", cred.UsableUntil)
	}
	if !cred.UsableUntil.IsZero() && cred.UsableUntil.Before(cred.NotAfter) {
		t.Errorf("usable at worst until %v, and it ends by the backend's own word at %v", cred.UsableUntil, cred.NotAfter)
	}
}

// checkNoSecret looks for the material of the credential in a text that is public. User names and the like are
// fields too, and public: only what no public reference holds counts.
func checkNoSecret(t *testing.T, text string, got issued) {
	t.Helper()
	materials := map[string]secret.Value{"the prepared state": got.req.Prepared.State}
	for name, v := range got.cred.Fields {
		if name != "username" {
			materials["field "+name] = v
		}
	}
	for name, v := range materials {
		if b := v.Expose(); len(b) >= 4 && bytes.Contains([]byte(text), b) {
			t.Errorf("%s stands in a public text", name)
		}
	}
}

// notAfter asks for a short life and expects the backend to bind it.
func (s *suite) notAfter(t *testing.T) {
	got := s.issue(t)
	asked, bound := got.req.NotAfter, got.cred.NotAfter
	if s.info.Ends == plugins.EndsNever {
		t.Skip("it never ends")
	}
	if bound.After(asked) {
		t.Errorf("it ends at %v, after the %v that was asked for", bound, asked)
	}
	if asked.Sub(bound) >= time.Second && (s.info.MaxTTL == 0 || s.info.MaxTTL > s.TTL) {
		t.Errorf("it ends at %v, more than a second before the %v that was asked for", bound, asked)
	}
}

// neverIssued revokes a lease of which nothing was issued, as a broker does that crashed before Issue.
func (s *suite) neverIssued(t *testing.T) {
	req := s.prepared(t)
	held := plugins.Held{Lease: req.Lease, Role: req.Role.Name, Handle: req.Prepared.Handle, IssuedAt: time.Now(), NotAfter: req.NotAfter, Uncertain: true}
	if held.Handle == "" && !s.Backend.Descriptor().HandleIsLeaseID {
		t.Skip("without a handle there is nothing to revoke by")
	}
	worst := req.Prepared.UsableUntil
	if worst.Before(req.NotAfter) {
		worst = req.NotAfter
	}
	for range 2 {
		if end := s.revoke(t, held); end.Proof == plugins.Swept && end.UsableUntil.After(worst) {
			t.Errorf("swept, it is usable until %s, and what was prepared said %s", end.UsableUntil, worst)
		}
	}
}

// unknownHandle revokes by a handle that the backend cannot have made.
func (s *suite) unknownHandle(t *testing.T) {
	held := plugins.Held{Lease: s.request(t).Lease, Handle: "plugintest: \x00 no handle", NotAfter: time.Now().Add(s.TTL)}
	if _, err := s.Backend.Revoke(s.context(t), held); !errors.Is(err, plugins.ErrUnknownHandle) {
		t.Errorf("Revoke by a damaged handle said %v, want ErrUnknownHandle", err)
	}
}

// expired asks for an end that has passed: nothing may be issued.
func (s *suite) expired(t *testing.T) {
	req := s.prepared(t)
	req.NotAfter = time.Now().Add(-time.Minute)
	_, err := s.Backend.Issue(s.context(t), req)
	checkError(t, err)
	if !errors.Is(err, plugins.ErrNotIssued) {
		t.Errorf("issue with a past end said %v, want ErrNotIssued", err)
	}
	s.endWhatMayBe(t, req)
}

// missingCSR leaves the CSR out where it is needed.
func (s *suite) missingCSR(t *testing.T) {
	if !s.info.NeedsCSR {
		t.Skip("the role needs none")
	}
	req := s.prepared(t)
	req.CSR = nil
	_, err := s.Backend.Issue(s.context(t), req)
	var rejected *plugins.RejectedError
	if !errors.As(err, &rejected) || rejected.Field != "csr" {
		t.Errorf("issue without a CSR said %v, want a RejectedError of csr", err)
	}
	s.endWhatMayBe(t, req)
}
