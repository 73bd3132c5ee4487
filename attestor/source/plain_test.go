package source_test

import (
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/stint-dev/stint/attestor/source"
)

func TestPlain(t *testing.T) {
	t.Parallel()
	dial := func(text string) error {
		return status.Error(codes.Unavailable, fmt.Sprintf("connection error: desc = %q", "transport: Error while dialing: "+text))
	}
	for _, test := range []struct {
		err  error
		want string
	}{
		{dial("dial tcp 127.0.0.1:1: connect: connection refused"), "connection refused"},
		{dial("dial tcp [::1]:8443: connect: connection refused"), "connection refused"},
		{dial("dial unix /a.sock: connect: no such file or directory"), "no such file or directory"},
		{dial("dial tcp: lookup stint.invalid: no such host"), "lookup stint.invalid: no such host"},
		{dial(`"quoted"`), `"quoted"`},
		{fmt.Errorf("fetch: %w", dial("dial tcp 10.0.0.1:1: i/o timeout")), "i/o timeout"},
		{
			status.Error(codes.DeadlineExceeded, `latest balancer error: connection error: desc = "transport: authentication handshake failed: EOF"`),
			"EOF",
		},
		{status.Error(codes.Unavailable, "error reading from server: EOF"), "error reading from server: EOF"},
		{status.Error(codes.Unavailable, `desc = "never closed`), `"never closed`},
		{errors.New("anything"), "anything"},
	} {
		if got := source.Plain(test.err); got != test.want {
			t.Errorf("%v: %q, want %q", test.err, got, test.want)
		}
	}
}
