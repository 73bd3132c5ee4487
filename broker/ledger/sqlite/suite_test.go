package sqlite_test

import (
	"testing"

	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/ledger/ledgertest"
	"github.com/stint-dev/stint/broker/ledger/sqlite"
)

func openStore(tb testing.TB, dir string) ledger.Store {
	tb.Helper()
	s, err := sqlite.Open(tb.Context(), dir)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func TestSuite(t *testing.T) { ledgertest.Run(t, openStore) }

func TestCrash(t *testing.T) { ledgertest.Crash(t, openStore) }
