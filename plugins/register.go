package plugins

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/big"
	"time"
)

// Register is implemented by backends that issue certificates and can say what they have signed. It changes nothing there.
type Register interface {
	// Issued yields the certificates that the CA has signed, or was asked to sign and may have, and that have not expired,
	// whoever asked for them, revoked or not. Handle is the serial number (SerialHandle), in upper-case hexadecimal of 32 digits
	// at least: for a certificate of the broker's the lease ID. All fields MUST be set; one certificate MAY be yielded more than once.
	//
	// What was signed before the call and has not expired after it MUST be yielded, but for what a PartialError says, which
	// MAY stand anywhere in between. Any other error ends the list. A list that is lost or damaged MUST be an error, never a
	// short list. The caller MAY stop at any time.
	Issued(ctx context.Context) iter.Seq2[Found, error]
}

// SerialHandle writes a serial number as the handles of a Register do.
func SerialHandle(number *big.Int) Handle { return Handle(fmt.Sprintf("%032X", number)) }

// PartialError says what a list does not hold because the backend cannot tell. It counts as errors.ErrUnsupported: asking
// again does not help. Its text is sent to the caller.
type PartialError struct {
	Problem string // "what was signed before 2026-03-14T09:12:44Z is not listed"
	// Since is from when on everything is listed, but for what other such errors say; zero where that is not what it is about.
	Since time.Time
}

// Error returns the problem.
func (e *PartialError) Error() string { return e.Problem }

// Is makes it count as errors.ErrUnsupported.
func (*PartialError) Is(target error) bool { return target == errors.ErrUnsupported }
