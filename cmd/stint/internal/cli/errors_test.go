package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/stint-dev/stint/attestor/source"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

func TestExitCodes(t *testing.T) {
	t.Parallel()
	of := func(code codes.Code, reason stintv1.Reason) error {
		return fmt.Errorf("call: %w", &agent.Error{Code: code, Reason: reason})
	}
	for _, test := range []struct {
		err  error
		want int
	}{
		{nil, codeOK},
		{errors.New("anything"), codeOther},
		{of(codes.Internal, stintv1.Reason_REASON_INTERNAL), codeOther},
		{of(codes.FailedPrecondition, stintv1.Reason_REASON_BACKEND_MISCONFIGURED), codeOther},
		{of(codes.AlreadyExists, stintv1.Reason_REASON_REQUEST_ID_REUSED), codeOther},
		{of(codes.InvalidArgument, stintv1.Reason_REASON_INVALID_ARGUMENT), codeUsage},
		{of(codes.InvalidArgument, stintv1.Reason_REASON_RESOURCE_INVALID), codeUsage},
		{source.ErrNoAddress, codeUsage},
		{errors.New(`unknown command "x" for "stint"`), codeUsage},
		{of(codes.NotFound, stintv1.Reason_REASON_NOT_FOUND), codeNotFound},
		{of(codes.PermissionDenied, stintv1.Reason_REASON_POLICY_DENIED), codeDenied},
		{of(codes.PermissionDenied, stintv1.Reason_REASON_APPROVAL_UNAVAILABLE), codeDenied},
		{of(codes.Unauthenticated, stintv1.Reason_REASON_UNAUTHENTICATED), codeDenied},
		{source.ErrNoIdentity, codeDenied},
		{of(codes.Unauthenticated, stintv1.Reason_REASON_SVID_EXPIRED), codeEnded},
		{of(codes.FailedPrecondition, stintv1.Reason_REASON_TASK_CLOSED), codeEnded},
		{of(codes.FailedPrecondition, stintv1.Reason_REASON_TASK_EXPIRED), codeEnded},
		{of(codes.FailedPrecondition, stintv1.Reason_REASON_DEADLINE_TOO_CLOSE), codeEnded},
		{of(codes.Unavailable, stintv1.Reason_REASON_BACKEND_UNAVAILABLE), codeUnavailable},
		{of(codes.Unavailable, stintv1.Reason_REASON_UNSPECIFIED), codeUnavailable},
		{of(codes.ResourceExhausted, stintv1.Reason_REASON_TOO_MANY_TASKS), codeUnavailable},
		{of(codes.ResourceExhausted, stintv1.Reason_REASON_UNSPECIFIED), codeUsage}, // too large, by gRPC's word
		{of(codes.DeadlineExceeded, stintv1.Reason_REASON_UNSPECIFIED), codeUnavailable},
		{source.ErrUnreachable, codeUnavailable},
	} {
		if got := exitCode(test.err); got != test.want {
			t.Errorf("%v: exit code %d, want %d", test.err, got, test.want)
		}
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		err  error
		code int
		want string
	}{
		"a denial": {
			withNotes(&agent.Error{
				Code: codes.PermissionDenied, Reason: stintv1.Reason_REASON_POLICY_DENIED, Message: "no \x1b[2Jway",
				RequestID: "r1", Metadata: map[string]string{"record": "12"},
			}, []string{"a note"}, []string{"ask"}),
			codeDenied, "denied: POLICY_DENIED no way\nnote:   a note\nnext:   ask · request r1, audit record 12\n",
		},
		"a backend that is down": {
			&agent.Error{
				Code: codes.Unavailable, Reason: stintv1.Reason_REASON_BACKEND_UNAVAILABLE,
				Message: "vault/prod is sealed, retry in 5 s; nothing was issued", RetryAfter: 5 * time.Second, RequestID: "r2",
			},
			codeUnavailable,
			"unavailable: BACKEND_UNAVAILABLE vault/prod is sealed, retry in 5 s; nothing was issued\nnext:   retry in 5s · request r2\n",
		},
		"a task that is over": {
			declareAgain(&agent.Error{
				Code: codes.FailedPrecondition, Reason: stintv1.Reason_REASON_TASK_EXPIRED, Message: "the task expired", RequestID: "r3",
			}, "tasks/answer-7f3k"),
			codeEnded, "ended: TASK_EXPIRED the task expired\nnext:   stint task declare --from answer-7f3k · request r3\n",
		},
		"a request that is too large": {
			&agent.Error{Code: codes.ResourceExhausted, Message: "grpc: received message larger than max (300000 vs. 262144)"}, codeUsage,
			"invalid: RESOURCE_EXHAUSTED grpc: received message larger than max (300000 vs. 262144)\n" +
				"next:   send less at once; over --admin-socket the broker takes 4 MiB\n",
		},
		"several fields": {
			&agent.Error{
				Code: codes.InvalidArgument, Reason: stintv1.Reason_REASON_INVALID_ARGUMENT, Message: "2 fields are invalid",
				Fields: []agent.FieldViolation{{Field: "a", Description: "b"}, {Field: "c", Description: "d\n"}},
			},
			codeUsage, "invalid: INVALID_ARGUMENT 2 fields are invalid\nnote:   a: b\nnote:   c: d \n",
		},
		"no answer in time": {
			&agent.Error{Code: codes.DeadlineExceeded, Message: "the broker at b:1 did not answer in time"}, codeUnavailable,
			"unavailable: DEADLINE_EXCEEDED the broker at b:1 did not answer in time\n" +
				"next:   see that the address is right (--addr, STINT_ADDR, --admin-socket) and that stintd runs there · or wait longer: --timeout\n",
		},
		"a command's own code": {exit{42}, 42, ""},
		"a plain error":        {errors.New("x"), codeOther, "error: x\n"},
	} {
		var out bytes.Buffer
		a := &app{stderr: &out}
		if got := a.report(test.err); got != test.code || out.String() != test.want {
			t.Errorf("%s: code %d, text\n%s\nwant %d,\n%s", name, got, out.String(), test.code, test.want)
		}
	}
}

func TestSignalsBeforeTheCommand(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := listen(cancel)
	defer s.close()
	s.in <- syscall.SIGWINCH
	s.in <- syscall.SIGTERM
	<-ctx.Done()
	if got := s.caught(); got != int(syscall.SIGTERM) {
		t.Errorf("caught %d", got)
	}
	r := &runner{signals: s}
	err := r.interrupted(&agent.Error{Code: codes.Canceled})
	if f, ok := errors.AsType[*failure](err); ok && f.code == 128+int(syscall.SIGTERM) {
		t.Errorf("an error without a cancelled context was taken for an interrupt: %v", err)
	}
	f, ok := errors.AsType[*failure](r.interrupted(fmt.Errorf("call: %w", context.Canceled)))
	if !ok || f.code != 128+int(syscall.SIGTERM) || !strings.Contains(f.Error(), "interrupted") {
		t.Errorf("failure %v", f)
	}
	// A command that was started all the same is told.
	got := make(chan os.Signal, 2)
	s.handOver(func(sig os.Signal) { got <- sig })
	if sig := <-got; sig != syscall.SIGTERM {
		t.Errorf("the command got %v", sig)
	}
	s.in <- syscall.SIGUSR1
	if sig := <-got; sig != syscall.SIGUSR1 {
		t.Errorf("the command got %v", sig)
	}
}

func TestParseRoles(t *testing.T) {
	t.Parallel()
	got, err := parseRoles([]string{"db=15m", "api"}, []string{"db.schema=eu=west", "db.table=t"})
	if err != nil || len(got) != 2 || got[0].TTL != 15*time.Minute || got[0].Parameters["schema"] != "eu=west" || got[1].TTL != 0 {
		t.Errorf("roles %v, %v", got, err)
	}
	for _, bad := range [][2][]string{
		{{""}, nil},
		{{"db=soon"}, nil},
		{{"db=-1s"}, nil},
		{{"db", "db"}, nil},
		{{"db"}, {"schema=eu"}},
		{{"db"}, {"other.schema=eu"}},
		{{"db"}, {"db.schema"}},
		{{"db"}, {"db.=eu"}},
	} {
		if _, err := parseRoles(bad[0], bad[1]); err == nil {
			t.Errorf("%q were accepted", bad)
		}
	}
}
