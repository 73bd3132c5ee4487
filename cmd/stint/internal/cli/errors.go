package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/term"
	"google.golang.org/grpc/codes"

	"github.com/stint-dev/stint/attestor/source"
	"github.com/stint-dev/stint/cmd/stint/internal/render"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

// Exit codes; docs/cli.md.
const (
	codeOK          = 0
	codeOther       = 1
	codeUsage       = 2
	codeNotFound    = 3
	codeDenied      = 4
	codeWaiting     = 5 // for an approval; nothing waits yet
	codeEnded       = 6
	codeUnavailable = 7
	codeUnproven    = 8 // something stopped is not proven to have ended
	codeStray       = 9 // something is alive at a backend that should not be
)

// failure is an error with what the command knows beyond it.
type failure struct {
	error

	code      int      // -1: by the error
	notes     []string // further facts
	next      []string // what to do
	knowsNext bool     // next says it better than the reason's hint
}

// Unwrap returns the error.
func (f *failure) Unwrap() error { return f.error }

// exit is an exit code that needs no words: a command's own.
type exit struct{ code int }

func (e exit) Error() string { return fmt.Sprintf("exit code %d", e.code) }

func usage(format string, args ...any) error {
	return &failure{error: fmt.Errorf(format, args...), code: codeUsage}
}

// withNotes adds to an error.
func withNotes(err error, notes, next []string) error {
	if err == nil {
		return nil
	}
	return &failure{error: err, code: -1, notes: notes, next: next}
}

// declareAgain says how to go on where a task is over.
func declareAgain(err error, task string) error {
	e, ok := errors.AsType[*agent.Error](err)
	if !ok || (e.Reason != stintv1.Reason_REASON_TASK_CLOSED && e.Reason != stintv1.Reason_REASON_TASK_EXPIRED) {
		return err
	}
	next := []string{"stint task declare --from " + strings.TrimPrefix(task, taskPrefix)}
	return &failure{error: err, code: -1, next: next, knowsNext: true}
}

// report says what went wrong, what was found and what to type, and returns the exit code.
func (a *app) report(err error) int {
	if e, ok := errors.AsType[exit](err); ok {
		return e.code
	}
	code := exitCode(err)
	var notes, next []string
	if f, ok := errors.AsType[*failure](err); ok {
		notes, next = f.notes, f.next
		if f.code >= 0 {
			code = f.code
		}
	}
	text := err.Error()
	if e, ok := errors.AsType[*agent.Error](err); ok {
		headline, _, _ := strings.Cut(e.Message, "\n")
		text = strings.Replace(text, e.Error(), e.ReasonName()+" "+headline, 1)
		notes = append(notes, fieldNotes(e, headline)...)
		if f, ok := errors.AsType[*failure](err); !ok || !f.knowsNext {
			next = append(next, hints(e)...)
		}
		next = append(next, references(e)...)
	} else if errors.Is(err, source.ErrUnreachable) {
		next = append(next, "see that SPIFFE_ENDPOINT_SOCKET is right, and that SPIRE's agent or stintd dev runs there")
	}
	a.say(a.highlight(word(code)) + " " + render.Clean(text))
	for _, note := range notes {
		a.say("note:   " + render.Clean(note))
	}
	if len(next) > 0 {
		a.say("next:   " + render.Clean(strings.Join(next, " · ")))
	}
	return code
}

// fieldNotes says what is wrong with each field, but for what the headline has said.
func fieldNotes(e *agent.Error, headline string) []string {
	var notes []string
	for _, field := range e.Fields {
		note := field.Field + ": " + field.Description
		if strings.Contains(headline, note) || (len(e.Fields) == 1 && strings.Contains(headline, field.Description)) {
			continue
		}
		notes = append(notes, note)
	}
	return notes
}

// say writes a line to standard error, which is all that can be done with it.
func (a *app) say(line string) { _, _ = fmt.Fprintln(a.stderr, line) }

// sayf is say for text with parts of others, which is cleaned.
func (a *app) sayf(format string, args ...any) { a.say(render.Clean(fmt.Sprintf(format, args...))) }

// highlight makes the first word bold where a person looks at a terminal and has not asked for no colour.
func (a *app) highlight(text string) string {
	file, ok := a.stderr.(*os.File)
	if !ok || os.Getenv(envNoColor) != "" || os.Getenv("TERM") == "dumb" || !term.IsTerminal(int(file.Fd())) {
		return text
	}
	return "\x1b[1m" + text + "\x1b[0m"
}

func word(code int) string {
	switch code {
	case codeUsage:
		return "invalid:"
	case codeNotFound:
		return "not found:"
	case codeDenied:
		return "denied:"
	case codeEnded:
		return "ended:"
	case codeUnavailable:
		return "unavailable:"
	case codeUnproven:
		return "unproven:"
	}
	return "error:"
}

// exitCode sorts an error. What cobra itself finds wrong is usage.
func exitCode(err error) int {
	if e, ok := errors.AsType[*agent.Error](err); ok {
		return exitCodeOf(e)
	}
	switch {
	case err == nil:
		return codeOK
	case errors.Is(err, source.ErrNoIdentity):
		return codeDenied
	case errors.Is(err, source.ErrUnreachable), errors.Is(err, context.DeadlineExceeded):
		return codeUnavailable
	case errors.Is(err, source.ErrNoAddress), errors.Is(err, source.ErrBadAddress), errors.Is(err, agent.ErrNoAddress),
		errors.Is(err, agent.ErrUsage), isCobra(err):
		return codeUsage
	}
	return codeOther
}

// isCobra knows the errors of flags and arguments, which have no type, by their texts.
func isCobra(err error) bool {
	text := err.Error()
	for _, start := range []string{
		"unknown command", "unknown flag", "unknown shorthand", "required flag", "accepts ", "requires at least",
		"invalid argument", "flag needs an argument", "if any flags in the group", "at least one of the flags", "bad flag syntax",
	} {
		if strings.HasPrefix(text, start) {
			return true
		}
	}
	return false
}

func exitCodeOf(e *agent.Error) int {
	switch e.Reason { //nolint:exhaustive // the others follow from the status code
	case stintv1.Reason_REASON_SVID_EXPIRED, stintv1.Reason_REASON_TASK_CLOSED, stintv1.Reason_REASON_TASK_EXPIRED,
		stintv1.Reason_REASON_DEADLINE_TOO_CLOSE:
		return codeEnded
	}
	if tooLarge(e) {
		return codeUsage
	}
	switch e.Code { //nolint:exhaustive // the others are other
	case codes.InvalidArgument:
		return codeUsage
	case codes.NotFound:
		return codeNotFound
	case codes.PermissionDenied, codes.Unauthenticated:
		return codeDenied
	case codes.Unavailable, codes.ResourceExhausted, codes.DeadlineExceeded:
		return codeUnavailable
	default:
		return codeOther
	}
}

// tooLarge is true of a message that gRPC itself refused for its size, as no broker refuses without a reason. Trying again is
// no help.
func tooLarge(e *agent.Error) bool {
	return e.Code == codes.ResourceExhausted && e.Reason == stintv1.Reason_REASON_UNSPECIFIED && e.RequestID == ""
}

// hints says what to type after a reason.
func hints(e *agent.Error) []string {
	switch e.Reason { //nolint:exhaustive // for the others the message says it
	case stintv1.Reason_REASON_ROLE_OUTSIDE_PROFILE, stintv1.Reason_REASON_ROLE_NOT_IN_TASK, stintv1.Reason_REASON_PARAMETER_INVALID:
		return []string{"stint roles"}
	case stintv1.Reason_REASON_NO_PROFILE, stintv1.Reason_REASON_PURPOSE_OUTSIDE_PROFILE, stintv1.Reason_REASON_UNAUTHENTICATED:
		return []string{"stint whoami"}
	case stintv1.Reason_REASON_ADMIN_ROLE_REQUIRED:
		return []string{"an identity with an administration role, or --admin-socket"}
	case stintv1.Reason_REASON_AGENT_SUSPENDED:
		return []string{"ask an operator, who can resume it"}
	case stintv1.Reason_REASON_NOT_FOUND:
		return []string{"stint task list"}
	case stintv1.Reason_REASON_TASK_CLOSED, stintv1.Reason_REASON_TASK_EXPIRED, stintv1.Reason_REASON_DEADLINE_TOO_CLOSE:
		return []string{"stint task declare"}
	case stintv1.Reason_REASON_BACKEND_MISCONFIGURED, stintv1.Reason_REASON_INTERNAL:
		return []string{"tell your operator"}
	}
	if tooLarge(e) {
		return []string{"send less at once; over --admin-socket the broker takes 4 MiB"}
	}
	if e.RetryAfter > 0 {
		return []string{"retry in " + render.Short(e.RetryAfter)}
	}
	if e.Reason == stintv1.Reason_REASON_UNSPECIFIED && e.RequestID == "" {
		return connectionHints(e)
	}
	return nil
}

// connectionHints says where to look when no broker answered, or another.
func connectionHints(e *agent.Error) []string {
	const address = "see that the address is right (--addr, STINT_ADDR, --admin-socket)"
	switch {
	case errors.Is(e, agent.ErrServerID):
		return []string{address + ", and the ID (--server-id, STINT_SERVER_ID)"}
	case e.Code == codes.Unavailable:
		return []string{address + " and that stintd runs there"}
	case e.Code == codes.DeadlineExceeded:
		return []string{address + " and that stintd runs there", "or wait longer: --timeout"}
	}
	return nil
}

// references name what an operator finds it under.
func references(e *agent.Error) []string {
	var out []string
	if e.RequestID != "" {
		out = append(out, "request "+e.RequestID)
	}
	if record := e.Metadata["record"]; record != "" {
		out = append(out, "audit record "+record)
	}
	if len(out) == 0 {
		return nil
	}
	return []string{strings.Join(out, ", ")}
}
