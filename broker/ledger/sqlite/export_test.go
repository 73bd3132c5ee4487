package sqlite

import (
	"context"
	"fmt"

	"github.com/stint-dev/stint/broker/ledger"
)

// LimitWAL makes the writer write the WAL back from a number of pages on.
func LimitWAL(s *Store, pages int64) { s.longWAL = pages }

// WriteBack does once what Run does on its timer.
func WriteBack(ctx context.Context, s *Store) { s.checkpoint(ctx) }

// LimitPages makes the database full at a number of pages, as a full disk would.
func LimitPages(r ledger.Rows, pages int) error {
	t, ok := r.(*tx)
	if !ok {
		return fmt.Errorf("%T is no transaction of this store", r)
	}
	var n int
	return t.s.one(fmt.Sprintf("PRAGMA max_page_count = %d", pages), nil, &n)
}

// ReadOnly makes the writer, which must have nothing to do, unable to write, or able again.
func ReadOnly(store ledger.Store, yes bool) error {
	s, ok := store.(*Store)
	if !ok {
		return fmt.Errorf("%T is not this store", store)
	}
	s.conns.writer.lost = nil // of what failed meanwhile
	_, err := s.conns.writer.exec(fmt.Sprintf("PRAGMA query_only = %t", yes))
	return err
}
