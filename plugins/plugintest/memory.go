package plugintest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
)

// MemoryConfig sets up a Memory or a Preparing. The zero value is a backend without side effects or latency.
type MemoryConfig struct {
	// Horizon goes into the Descriptor. Above zero the broker must commit an intent before it issues.
	Horizon time.Duration
	// MaxTTL is the most that a credential may live, reported by CheckRole and bound by Issue; zero means no bound.
	MaxTTL time.Duration
	// Latency is how long each operation takes before it has its effect.
	Latency map[Op]time.Duration
	// Systems are systems behind the backend: what is issued by their roles is an account there.
	Systems []plugins.System
}

// Memory is a backend that keeps its credentials in memory: a real one, with an inventory that a test can count, and
// with faults that a test can inject (see faults). Its handle is the lease ID. Role section "memory":
//
//	{"ends": "revocable" | "lapsing" | "never", "csr": false}
//
// Ends defaults to revocable. With csr a request needs a CSR and the answer is a chain of one made-up certificate
// instead of fields. Memory is safe for concurrent use, works inside a synctest bubble, and starts no goroutine but
// the timers of LateNext.
type Memory struct {
	cfg    MemoryConfig
	faults faults

	// mu guards what follows.
	mu       sync.Mutex
	slots    map[plugins.Handle]*slot
	accounts map[string]*accounts // by system
}

// slot is what the backend holds under one handle.
type slot struct {
	lease      plugins.LeaseID
	role       string
	token      secret.Value // what Prepare made; zero in a Memory
	tokenUntil time.Time
	made       bool // a credential was made at least once
	alive      bool // and nothing has ended it but perhaps its NotAfter
	dropped    bool // Drop ended it
	ends       plugins.Ends
	password   secret.Value
	madeAt     time.Time
	notAfter   time.Time
}

// NewMemory makes a Memory.
func NewMemory(cfg MemoryConfig) *Memory {
	m := &Memory{cfg: cfg, slots: map[plugins.Handle]*slot{}, accounts: map[string]*accounts{}}
	for _, system := range cfg.Systems {
		m.accounts[system.Name] = &accounts{planted: map[string]plugins.Account{}, dropped: map[string]bool{}}
	}
	return m
}

// Descriptor says that the lease ID is the handle.
func (m *Memory) Descriptor() plugins.Descriptor {
	return plugins.Descriptor{Type: "memory", Section: section, Horizon: m.cfg.Horizon, HandleIsLeaseID: true}
}

// CheckRole reads the section "memory".
func (m *Memory) CheckRole(role plugins.Role) (plugins.RoleInfo, error) {
	cfg, err := readRole(role)
	if err != nil {
		return plugins.RoleInfo{}, err
	}
	return cfg.info(m.cfg.MaxTTL, role.MaxTTL), nil
}

// Issue makes a credential under the lease ID.
func (m *Memory) Issue(ctx context.Context, req plugins.Request) (plugins.Credential, error) {
	return m.issue(ctx, req, plugins.Handle(req.Lease.String()))
}

// Revoke ends what the handle, or without one the lease ID, names.
func (m *Memory) Revoke(ctx context.Context, held plugins.Held) (plugins.Ending, error) {
	if held.Handle == "" {
		held.Handle = plugins.Handle(held.Lease.String())
	}
	if raw, err := hex.DecodeString(string(held.Handle)); err != nil || len(raw) != len(held.Lease) {
		return plugins.Ending{}, fmt.Errorf("revoke in memory: %w", plugins.ErrUnknownHandle)
	}
	return m.revoke(ctx, held)
}

// Healthy wraps ErrUnavailable between Break and Heal.
func (m *Memory) Healthy(context.Context) error {
	if m.faults.isBroken() {
		return fmt.Errorf("memory: %w", plugins.ErrUnavailable)
	}
	return nil
}

// List yields what is alive under the role, in the order of leases.
func (m *Memory) List(ctx context.Context, role plugins.Role) iter.Seq2[plugins.Found, error] {
	return func(yield func(plugins.Found, error) bool) {
		if m.faults.isBroken() {
			yield(plugins.Found{}, fmt.Errorf("list in memory: %w", plugins.ErrUnavailable))
			return
		}
		for _, f := range m.found(role.Name) {
			if ctx.Err() != nil || !yield(f, nil) {
				return
			}
		}
	}
}

// Find returns what is alive under a handle.
func (m *Memory) Find(ctx context.Context, h plugins.Handle) (plugins.Found, error) {
	if err := ctx.Err(); err != nil || m.faults.isBroken() {
		return plugins.Found{}, fmt.Errorf("find in memory: %w", plugins.ErrUnavailable)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.slots[h]
	if !ok || !s.works(time.Now()) {
		return plugins.Found{}, fmt.Errorf("find in memory: %w", plugins.ErrGone)
	}
	return s.found(h), nil
}

// Key returns the handle: there is one for each credential.
func (*Memory) Key(h plugins.Handle) string { return string(h) }

// Alive returns the leases whose credential would work now, sorted. It is the truth that a test holds against what
// a broker believes.
func (m *Memory) Alive() []plugins.LeaseID {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ids []plugins.LeaseID
	for _, s := range m.slots {
		if s.works(time.Now()) {
			ids = append(ids, s.lease)
		}
	}
	slices.SortFunc(ids, func(a, b plugins.LeaseID) int { return slices.Compare(a[:], b[:]) })
	return ids
}

// Made returns how many credentials were ever made.
func (m *Memory) Made() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for _, s := range m.slots {
		if s.made {
			n++
		}
	}
	return n
}

// Works reports whether the credential would be accepted now.
func (m *Memory) Works(_ context.Context, cred plugins.Credential) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.slots[cred.Handle]
	if !ok || !s.works(time.Now()) {
		return false
	}
	return len(cred.Chain) > 0 || s.password.Equal(cred.Fields["password"])
}

// Drop ends a lease's credential behind the broker's back, as a backend's own operator might. A later Revoke proves
// LostAtBackend.
func (m *Memory) Drop(lease plugins.LeaseID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.slots {
		if s.lease == lease && s.alive {
			s.alive, s.dropped = false, true
		}
	}
}

// issue runs the fault machinery around the making of a credential.
func (m *Memory) issue(ctx context.Context, req plugins.Request, h plugins.Handle) (plugins.Credential, error) {
	cfg, err := readRole(req.Role)
	if err != nil {
		return plugins.Credential{}, fmt.Errorf("issue in memory: %w: %w", err, plugins.ErrNotIssued)
	}
	if cfg.CSR && len(req.CSR) == 0 {
		return plugins.Credential{}, &plugins.RejectedError{Field: "csr", Problem: "missing"}
	}
	if !req.NotAfter.After(time.Now()) {
		return plugins.Credential{}, fmt.Errorf("issue in memory: not_after has passed: %w", plugins.ErrNotIssued)
	}
	password := secret.FromString(rand.Text())
	notAfter := bound(req.NotAfter, m.cfg.MaxTTL)
	if cfg.ends() == plugins.EndsNever {
		notAfter = time.Time{}
	}
	err = m.faults.run(ctx, m.call(OpIssue, req.Lease), func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.bring(h, slot{
			lease: req.Lease, role: req.Role.Name, ends: cfg.ends(), password: password, madeAt: time.Now(), notAfter: notAfter,
		})
	})
	if err != nil {
		return plugins.Credential{}, fmt.Errorf("issue in memory: %w", err)
	}
	return credential(cfg, req.Lease, h, password, notAfter), nil
}

// bring puts a credential to life under a handle; the caller holds mu. Like Vault, it does so even when the token
// was revoked while the call was in flight: that is what a horizon is for.
func (m *Memory) bring(h plugins.Handle, s slot) {
	if old, ok := m.slots[h]; ok {
		s.token, s.tokenUntil = old.token, old.tokenUntil
	}
	s.made, s.alive = true, true
	m.slots[h] = &s
}

func (m *Memory) revoke(ctx context.Context, held plugins.Held) (plugins.Ending, error) {
	end := plugins.Ending{Proof: plugins.NotIssued}
	err := m.faults.run(ctx, m.call(OpRevoke, held.Lease), func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if s, ok := m.slots[held.Handle]; ok {
			end = s.end(time.Now())
		}
	})
	if err != nil {
		return plugins.Ending{}, fmt.Errorf("revoke in memory: %w", err)
	}
	end.At = time.Now()
	return end, nil
}

func (m *Memory) call(op Op, lease plugins.LeaseID) call {
	return call{op: op, lease: lease, latency: m.cfg.Latency[op]}
}

func (m *Memory) found(role string) []plugins.Found {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []plugins.Found
	for h, s := range m.slots {
		if s.role == role && s.works(time.Now()) {
			all = append(all, s.found(h))
		}
	}
	slices.SortFunc(all, func(a, b plugins.Found) int { return strings.Compare(a.PublicRef, b.PublicRef) })
	return all
}

func (s *slot) found(h plugins.Handle) plugins.Found {
	return plugins.Found{Handle: h, PublicRef: publicRef(s.lease), IssuedAt: s.madeAt, NotAfter: s.notAfter}
}

// works reports whether the slot's credential would be accepted.
func (s *slot) works(now time.Time) bool {
	return s.alive && (s.notAfter.IsZero() || now.Before(s.notAfter))
}

// end ends the slot as its kind can be ended and says how.
func (s *slot) end(now time.Time) plugins.Ending {
	s.token.Wipe()
	s.token = secret.Value{}
	switch {
	case !s.made:
		return plugins.Ending{Proof: plugins.NotIssued, Detail: "memory: never made"}
	case s.ends == plugins.EndsNever:
		return plugins.Ending{Proof: plugins.Disclosed}
	case s.dropped:
		return plugins.Ending{Proof: plugins.LostAtBackend, Detail: "memory: gone before"}
	case !now.Before(s.notAfter):
		s.alive = false
		return plugins.Ending{Proof: plugins.Lapsed, UsableUntil: s.notAfter}
	case s.ends == plugins.EndsLapsing:
		return plugins.Ending{Proof: plugins.Pending, UsableUntil: s.notAfter}
	}
	s.alive = false
	return plugins.Ending{Proof: plugins.ReadBack, Detail: "memory: gone"}
}

func credential(cfg roleConfig, lease plugins.LeaseID, h plugins.Handle, password secret.Value, until time.Time) plugins.Credential {
	cred := plugins.Credential{Handle: h, PublicRef: publicRef(lease), NotAfter: until}
	if until.IsZero() {
		cred.UsableUntil = plugins.NoEnd()
	}
	if cfg.CSR {
		cred.Chain = [][]byte{[]byte("certificate " + lease.String())}
		cred.Bundle = [][]byte{[]byte("root")}
		return cred
	}
	cred.Fields = map[string]secret.Value{"username": secret.FromString("user-" + lease.String()), "password": password}
	return cred
}

func publicRef(lease plugins.LeaseID) string { return "m-" + lease.String() }

func bound(notAfter time.Time, limit time.Duration) time.Time {
	if limit <= 0 {
		return notAfter
	}
	if latest := time.Now().Add(limit); latest.Before(notAfter) {
		return latest
	}
	return notAfter
}
