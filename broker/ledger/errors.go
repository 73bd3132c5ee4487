package ledger

import "errors"

// Errors of the ledger. What a function given to Update returns comes back unchanged; these are the ledger's own.
var (
	// ErrUnavailable: nothing was written. The database would not begin, the disk is full, a write failed.
	ErrUnavailable = errors.New("ledger is unavailable")
	// ErrOutcomeUnknown: the commit failed on its way to the disk. The change may be there after all: read it again.
	ErrOutcomeUnknown = errors.New("outcome of the commit is not known")
	// ErrClosed: the ledger takes no more work. Nothing was written.
	ErrClosed = errors.New("ledger is closed")
	// ErrHeld: the ledger is an older copy, and takes no change until an operator confirms that it is the one to go on with.
	ErrHeld = errors.New("ledger was restored from an older copy, and nobody has confirmed it")
	// ErrNotHeld: there is nothing to confirm.
	ErrNotHeld = errors.New("ledger is not held")
	// ErrTxLost: the store's transaction cannot go on and must be rolled back. Only stores return it.
	ErrTxLost = errors.New("transaction is lost")
	// ErrDamaged: what the store holds cannot be read: a page or a row is not what was written. It comes with ErrUnavailable.
	ErrDamaged = errors.New("ledger is damaged")
	// ErrMismatch: the log in the store is not the one that its checkpoint was signed for.
	ErrMismatch = errors.New("audit log does not match its checkpoint")
)
