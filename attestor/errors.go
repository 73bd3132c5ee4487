package attestor

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Kinds of refusal. Every refusal is an [*Error] that wraps exactly one of them; all of them mean "no identity".
var (
	// ErrNoEvidence says that the call brought nothing of the kind that the listener asks for.
	ErrNoEvidence = errors.New("no evidence of identity")
	// ErrInvalid says that the evidence is malformed, or breaks a rule of SPIFFE or of this project.
	ErrInvalid = errors.New("invalid evidence of identity")
	// ErrExpired says that the evidence was valid once.
	ErrExpired = errors.New("evidence of identity has expired")
	// ErrNotYetValid says that the evidence is valid later, which is nearly always a clock.
	ErrNotYetValid = errors.New("evidence of identity is not yet valid")
	// ErrUntrusted says that the evidence does not verify against the present bundle of its trust domain.
	ErrUntrusted = errors.New("evidence of identity is not trusted")
	// ErrForeignTrustDomain says that the trust domain is neither Stint's own nor configured.
	ErrForeignTrustDomain = errors.New("foreign trust domain")
	// ErrTaskDomain says that a certificate issued for a task was used as an agent's identity.
	ErrTaskDomain = errors.New("task trust domain is not an agent's")
	// ErrAudience says that a token was made for somebody else.
	ErrAudience = errors.New("token is for another audience")
	// ErrUnavailable says that nothing can be verified now: a bundle or a peer credential cannot be had.
	ErrUnavailable = errors.New("identity cannot be verified now")
)

// Error is a refusal. Message is written for the caller: it says what was found and what to do, and holds nothing
// that the caller did not send or may not know. Cause is for the log.
type Error struct {
	Kind    error  // one of the sentinels
	Message string // public, one line, e.g. "SVID expired 12 s ago; reconnect; …"
	Cause   error  // private; may be nil
}

// Refuse returns an [*Error] of a kind with a public message and a private cause, which may be nil.
func Refuse(kind error, message string, cause error) *Error {
	return &Error{Kind: kind, Message: message, Cause: cause}
}

// Error returns kind, message and cause.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Kind.Error())
	if e.Message != "" {
		b.WriteString(": " + e.Message)
	}
	if e.Cause != nil {
		b.WriteString(": " + e.Cause.Error())
	}
	return b.String()
}

// Unwrap returns the kind and the cause, so that [errors.Is] finds both.
func (e *Error) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Cause}
}

// CheckValidity returns nil if notBefore ≤ now ≤ notAfter, else an [*Error] that says by how much and what the time
// is here.
func CheckValidity(notBefore, notAfter, now time.Time) error {
	clock := now.UTC().Format("15:04:05Z")
	if now.After(notAfter) {
		return Refuse(ErrExpired, fmt.Sprintf("SVID expired %s ago; reconnect; if it repeats, check clocks (broker says %s)",
			about(now.Sub(notAfter)), clock), nil)
	}
	if now.Before(notBefore) {
		return Refuse(ErrNotYetValid, fmt.Sprintf("SVID becomes valid in %s; check clocks (broker says %s)",
			about(notBefore.Sub(now)), clock), nil)
	}
	return nil
}

// about writes a duration for people: "340 ms", "12 s", "1h2m3s".
func about(d time.Duration) string {
	switch {
	case d < time.Second:
		return strconv.FormatInt(d.Milliseconds(), 10) + " ms"
	case d < time.Minute:
		return strconv.Itoa(int(d.Round(time.Second)/time.Second)) + " s"
	}
	return d.Round(time.Second).String()
}
