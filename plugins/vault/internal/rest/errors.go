package rest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"

	vaultapi "github.com/hashicorp/vault/api"

	"github.com/stint-dev/stint/plugins"
)

// errNotJSON stands for every decoding error, because those quote what they decode.
var errNotJSON = errors.New("the answer is not the JSON that was expected")

// Error is a call that failed: what was asked, and the status. Vault's own messages are matched against known ones and
// then dropped: an engine may put a connection string or a password into them.
type Error struct {
	Method, Path string
	Status       int  // HTTP status; 0 where no answer came
	NotSent      bool // nothing left this machine
	messages     []string
	cause        error
}

// Error names the call, the status, and a message of Vault's only where it is one of a known few.
func (e *Error) Error() string {
	what := "vault: " + e.Method + " " + e.Path
	switch {
	case e.Status == 0 && e.cause != nil:
		return what + ": " + e.cause.Error()
	case e.Sealed():
		return what + ": 503, sealed"
	case e.Says(msgInvalidLease):
		return fmt.Sprintf("%s: %d, %s", what, e.Status, msgInvalidLease)
	case e.Says(msgInvalidAccessor):
		return fmt.Sprintf("%s: %d, %s", what, e.Status, msgInvalidAccessor)
	case e.Status == http.StatusForbidden:
		return what + ": 403, no such policy or token"
	}
	return fmt.Sprintf("%s: %d", what, e.Status)
}

// Unwrap gives the cause, and what kind of fault it is in the words of the contract.
func (e *Error) Unwrap() []error {
	errs := []error{plugins.ErrUnavailable}
	switch e.Status {
	case http.StatusForbidden, http.StatusNotFound, http.StatusBadRequest, http.StatusMethodNotAllowed:
		errs = []error{plugins.ErrMisconfigured}
	case http.StatusServiceUnavailable:
		if e.Sealed() {
			errs = []error{plugins.ErrSealed}
		}
	}
	if e.cause != nil {
		errs = append(errs, e.cause)
	}
	return errs
}

// The messages of Vault 1.21 that mean something to Stint.
const (
	msgInvalidLease    = "invalid lease"
	msgInvalidAccessor = "invalid accessor"
	msgBadToken        = "bad token"
	msgSealed          = "Vault is sealed"
	msgDenied          = "permission denied"
	msgNoMount         = "No secret engine mount at " // and the path, which is dropped
)

// Says reports whether one of Vault's messages is exactly this one.
func (e *Error) Says(message string) bool { return slices.Contains(e.messages, message) }

// NoMount reports whether err is Vault's word that no engine is mounted there: not 404, but 400.
func NoMount(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Status == http.StatusBadRequest && e.Says(msgNoMount)
}

// Sealed reports whether Vault said that it is sealed.
func (e *Error) Sealed() bool { return e.Status == http.StatusServiceUnavailable && e.Says(msgSealed) }

// InvalidLease reports whether err is Vault's word that no such lease exists: status 400 and exactly that message.
func InvalidLease(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Status == http.StatusBadRequest && e.Says(msgInvalidLease)
}

// BadRequest reports whether Vault answered with 400, by which it also passes on that an engine failed.
func BadRequest(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Status == http.StatusBadRequest
}

// InvalidAccessor reports whether err is Vault's word that no such token exists.
func InvalidAccessor(err error) bool {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return false
	}
	switch e.Status {
	case http.StatusBadRequest, http.StatusForbidden, http.StatusNotFound:
		return e.Says(msgInvalidAccessor) || e.Says(msgBadToken)
	}
	return false
}

// Denied reports whether the token of the call is dead or may not do this: Vault answers both alike.
func Denied(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Status == http.StatusForbidden && !InvalidAccessor(err)
}

// NothingHappened reports whether a failed call certainly had no effect: it was never sent, or Vault refused it before
// any engine saw it. A 400 and every other 5xx may come after the engine acted.
func NothingHappened(err error) bool {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		return false
	}
	switch e.Status {
	case http.StatusForbidden, http.StatusNotFound, http.StatusTooManyRequests:
		return true
	}
	return e.NotSent || e.Sealed() || (e.Status >= http.StatusMultipleChoices && e.Status < http.StatusBadRequest)
}

// classify turns an error of vault/api into an *Error.
func classify(call Call, err error) *Error {
	out := &Error{Method: call.Method, Path: call.Path}
	if answered, ok := errors.AsType[*vaultapi.ResponseError](err); ok {
		out.Status = answered.StatusCode
		if !answered.RawError {
			for _, text := range answered.Errors {
				out.messages = append(out.messages, known(text)...)
			}
		}
		return out
	}
	out.cause = plain(err)
	op, isOp := errors.AsType[*net.OpError](err)
	_, isCert := errors.AsType[*tls.CertificateVerificationError](err)
	out.NotSent = isCert || (isOp && op.Op == "dial")
	return out
}

// known keeps those of Vault's messages that hold nothing but themselves. Vault wraps some as a list of errors, one a
// line; never "invalid lease" and "Vault is sealed".
func known(text string) []string {
	switch {
	case text == msgInvalidLease, text == msgSealed:
		return []string{text}
	case strings.HasPrefix(text, msgNoMount):
		return []string{msgNoMount}
	}
	var found []string
	for line := range strings.Lines(text) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "* ")
		if line == msgInvalidAccessor || line == msgBadToken || line == msgDenied {
			found = append(found, line)
		}
	}
	return found
}

// plain drops the URL that *url.Error repeats and keeps the reason: refused, timed out, a bad certificate.
func plain(err error) error {
	for _, ctxErr := range []error{context.DeadlineExceeded, context.Canceled} {
		if errors.Is(err, ctxErr) {
			return ctxErr
		}
	}
	for {
		inner := errors.Unwrap(err)
		if _, ok := err.(*net.OpError); ok || inner == nil { //nolint:errorlint // walks the chain itself
			return err
		}
		err = inner
	}
}
