package ledger_test

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
)

func TestWatch(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	row, other := newTask(t, "row"), newTask(t, "other")
	changed, cancel := f.Subscribe(row.ID)
	quiet, cancelQuiet := f.Subscribe(other.ID)
	defer cancelQuiet()
	grown := f.Grown()
	if _, err := f.insert(t, row); err != nil {
		t.Fatal(err)
	}
	<-changed
	<-grown
	select {
	case <-f.Kicked():
		t.Error("kicked for what is due in an hour")
	case <-quiet:
		t.Error("told of another task")
	default:
	}
	id, err := lease.NewID()
	if err != nil {
		t.Fatal(err)
	}
	due := lease.Lease{ID: id, Task: row.ID, State: lease.Revoking, NextAt: time.Now()}
	if _, err = f.Update(t.Context(), func(tx *ledger.Tx) error { return tx.InsertLease(due) }); err != nil {
		t.Fatal(err)
	}
	<-changed
	<-f.Kicked()
	cancel()
	claimed := due
	claimed.Claim, claimed.ClaimUntil = 1, time.Now().Add(time.Minute)
	if _, err = f.Update(t.Context(), func(tx *ledger.Tx) error { return tx.UpdateLease(claimed, due) }); err != nil {
		t.Fatal(err)
	}
	_, err = f.Update(t.Context(), func(tx *ledger.Tx) error { return tx.UpdateTask(row, task.Closed) })
	if !errors.Is(err, ledger.ErrStale) {
		t.Error(err)
	}
	select {
	case <-changed:
		t.Error("told after cancel")
	case <-f.Kicked():
		t.Error("kicked for what is claimed")
	default:
	}
}

func TestErase(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	row, other := newTask(t, "row"), newTask(t, "other")
	row.Description, row.Labels = "text of row", map[string]string{"k": "v"}
	for _, r := range []task.Task{row, other} {
		if _, err := f.insert(t, r); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []int{1, 0} {
		n, err := f.Erase(t.Context(), audit.Actor{ID: "admin"}, row.ID)
		if err != nil || n != want {
			t.Errorf("erased %d, want %d: %v", n, want, err)
		}
	}
	err := f.View(t.Context(), func(r ledger.Reader) error {
		got, err := r.Task(row.ID)
		if got.Description != "" || got.Labels != nil {
			t.Errorf("task after erasing: %+v", got)
		}
		texts, err2 := r.Texts(1)
		rest, err3 := r.Texts(2)
		if len(texts) != 0 || len(rest) != 1 {
			t.Errorf("texts after erasing: %v and %v", texts, rest)
		}
		rep, err4 := audit.VerifyLog(t.Context(), r, audit.LogCheck{VerifierKey: f.key.Text})
		if rep.Size != 4 || rep.Erased != 1 || rep.Texts != 1 {
			t.Errorf("log after erasing: %+v", rep)
		}
		return errors.Join(err, err2, err3, err4)
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := f.Erase(t.Context(), audit.Actor{}, task.ID{1}); !errors.Is(err, ledger.ErrNotFound) {
		t.Errorf("erase what is not there: %v", err)
	}
}

func TestLow(t *testing.T) {
	t.Parallel()
	store, key := newStore(t), newKey(t)
	var free uint64
	var fail error
	l, err := ledger.Open(t.Context(), ledger.Config{
		Store: store, Signer: key.Signer, Verifier: key.Verifier, Origin: key.Signer.Name(),
		StopIssuingBelow: 100, FreeBytes: func() (uint64, error) { return free, fail },
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		free uint64
		fail error
		want bool
	}{{100, nil, false}, {99, nil, true}, {100, nil, false}, {100, errDisk, true}} {
		if free, fail = c.free, c.fail; l.Low() != c.want {
			t.Errorf("%d bytes free, error %v: low is not %v", c.free, c.fail, c.want)
		}
	}
	if open(t, store, key).Low() {
		t.Error("low without a limit")
	}
}

// TestReceiptFromLedger: a receipt made from a real ledger verifies.
func TestReceiptFromLedger(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	row := newTask(t, "row")
	if _, err := f.insert(t, row); err != nil {
		t.Fatal(err)
	}
	_, key, err := note.GenerateKey(nil, "x")
	if err != nil {
		t.Fatal(err)
	}
	err = f.View(t.Context(), func(r ledger.Reader) error {
		doc, berr := audit.BuildReceipt(r, row.ID.String())
		if berr != nil {
			return berr
		}
		if _, bad := audit.VerifyReceipt(doc, key); !errors.Is(bad, audit.ErrReceipt) {
			t.Errorf("with another key: %v", bad)
		}
		rep, verr := audit.VerifyReceipt(doc, f.key.Text)
		if rep.Texts != 1 || rep.Records != 1 {
			t.Errorf("report %+v", rep)
		}
		return verr
	})
	if err != nil {
		t.Error(err)
	}
}
