package plugins

import (
	"context"
	"iter"
	"time"
)

// AccountLister is implemented by backends that can ask the systems behind them, such as databases, which accounts there are.
// What a backend has forgotten is in no list of its own. It changes nothing there.
type AccountLister interface {
	// Systems returns the systems that can be asked, each once, in an order that stays; there MAY be none. It MUST be constant
	// for the life of the instance and do no I/O.
	Systems() []System

	// Accounts yields the accounts of one of Systems that a credential may stand for, whoever made them: each name once. What was
	// there before the call and still is after it MUST be yielded, unless the last that is yielded is an error. A system that
	// does not answer, does not let itself be asked, or is none of Systems MUST be an error, never an empty list. The caller MAY
	// stop at any time.
	Accounts(ctx context.Context, system string) iter.Seq2[Account, error]
}

// System is a system behind a backend that keeps accounts of its own.
type System struct {
	Name string // "orders": lower-case letters, digits and dashes
	// Roles are the roles of which every credential is an account of this system, by its PublicRef. Only of these can it be
	// said that an account is gone. There MAY be others, and none MUST be named of which it is not so.
	Roles []string
}

// Account is one account of a system.
type Account struct {
	// Name is the PublicRef of the Credential that the account stands for, if it stands for one.
	Name string
	// NotAfter is from when on the system lets nobody in by it; zero where the system knows no such instant.
	NotAfter time.Time
	// Dead: by the system's own word nobody is let in by it now, and nobody is in. All that is left of it is its name.
	Dead bool
}
