package broker_test

import (
	"context"
	"errors"
	"sync"

	"github.com/stint-dev/stint/broker/failpoint"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/ledger/sqlite"
)

// step is where a write transaction can be made to fail.
type step string

const (
	atBegin  step = "begin"  // the database does not begin
	atLog    step = "log"    // the audit log cannot be written: the disk is full
	atCommit step = "commit" // the commit fails, and nothing was written
	atAnswer step = "answer" // the commit fails although all was written
	atReopen step = "reopen" // the database does not come back
)

var errDisk = errors.New("no space left on device")

// opener opens the store that lives in a directory, made if it is not there.
type opener func(ctx context.Context, dir string) (ledger.Store, error)

// firstStore is what everything but the crash matrix runs on.
const firstStore = "sqlite"

// stores are all there are, by name: the crash matrix runs on each.
func stores() map[string]opener {
	return map[string]opener{
		firstStore: func(ctx context.Context, dir string) (ledger.Store, error) { return sqlite.Open(ctx, dir) },
	}
}

// store is the real store, whose write transactions a test makes fail.
type store struct {
	ledger.Store

	lies lies // of every transaction; nil is none

	mu      sync.Mutex // guards all below
	plan    map[step][]bool
	commits int
	dying   []bool // of each commit from now on that counts: whether the process dies before it (false) or after it (true)
	dead    bool
	full    bool // nothing can be written
	low     bool // it is nearly full
}

// failNth makes the nth transaction from now on, counted from 1, fail at a step.
func (s *store) failNth(at step, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.plan == nil {
		s.plan = map[step][]bool{}
	}
	s.plan[at] = append(make([]bool, n-1), true)
}

// calm takes back what was to fail.
func (s *store) calm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.plan = nil
}

// fillUp fills the disk, so that no log can be written, or makes room.
func (s *store) fillUp(yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = yes
}

// fill fills the disk nearly up, or makes room.
func (s *store) fill(yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.low = yes
}

// die makes the process die at the nth commit from now on, before it or after it. From then on nothing reaches the disk.
func (s *store) die(n int, after bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dying = make([]bool, n)
	s.dying[n-1] = after
}

// kill is die at once.
func (s *store) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead = true
}

func (s *store) isDead() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dead
}

// dies says whether the process is dead, and at a commit, whether it dies before or after it.
func (s *store) dies() (before, after bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead || len(s.dying) == 0 {
		return s.dead, false
	}
	last, then := len(s.dying) == 1, s.dying[0]
	s.dying, s.dead = s.dying[1:], last
	return last && !then, last && then
}

// count returns how many transactions were committed since it was last asked.
func (s *store) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.commits
	s.commits = 0
	return n
}

// hit says whether a transaction fails at a step.
func (s *store) hit(at step) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead || s.full && at == atLog {
		return true
	}
	plan := s.plan[at]
	if len(plan) == 0 {
		return false
	}
	s.plan[at] = plan[1:]
	return plan[0]
}

func (s *store) FreeBytes() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.low {
		return 0, nil
	}
	return 1 << 40, nil
}

func (s *store) Begin(ctx context.Context) (ledger.StoreTx, error) {
	if s.hit(atBegin) {
		return nil, errDisk
	}
	tx, err := s.Store.Begin(ctx)
	if s.lies != nil && err == nil {
		tx = s.lies(tx)
	}
	return &storeTx{StoreTx: tx, store: s}, err
}

func (s *store) Reopen(ctx context.Context) error {
	if s.hit(atReopen) {
		return errDisk
	}
	return s.Store.Reopen(ctx)
}

// storeTx is a write transaction of a store.
type storeTx struct {
	ledger.StoreTx

	store *store
}

func (t *storeTx) PutLog(a ledger.LogAppend) error {
	if t.store.hit(atLog) {
		return errDisk
	}
	return t.StoreTx.PutLog(a)
}

func (t *storeTx) Commit() error {
	if t.store.hit(atCommit) {
		return errors.Join(errDisk, t.Rollback())
	}
	before, after := t.store.dies()
	if before {
		return errors.Join(errDisk, t.Rollback())
	}
	failpoint.Hit("ledger.commit")
	if err := t.StoreTx.Commit(); err != nil {
		return err
	}
	failpoint.Hit("ledger.committed")
	t.store.mu.Lock()
	t.store.commits++
	t.store.mu.Unlock()
	if after || t.store.hit(atAnswer) {
		return errDisk
	}
	return nil
}
