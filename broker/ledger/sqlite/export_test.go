package sqlite

import (
	"fmt"

	"github.com/stint-dev/stint/broker/ledger"
)

// LimitPages makes the database full at a number of pages, as a full disk would.
func LimitPages(r ledger.Rows, pages int) error {
	t, ok := r.(*tx)
	if !ok {
		return fmt.Errorf("%T is no transaction of this store", r)
	}
	var n int
	return t.s.one(fmt.Sprintf("PRAGMA max_page_count = %d", pages), nil, &n)
}
