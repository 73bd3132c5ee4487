package servertest

import (
	"context"
	"net"
	"strconv"
	"testing"
	"time"
)

// TestReserve: an address that a test has is nobody else's until it ends, whether somebody listens there or not.
func TestReserve(t *testing.T) {
	t.Parallel()
	address := FreeAddress(t)
	if err := reserve(t.Context(), address); err == nil {
		t.Fatal("the address of this test is somebody else's too")
	}
	ctx, over := context.WithCancel(t.Context())
	other := FreeAddress(t)
	if other == address {
		t.Fatal("the same address twice")
	}
	host, port, err := freeAddress(ctx)
	if err != nil {
		t.Fatal(err)
	}
	over()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); reserve(t.Context(), net.JoinHostPort(host, strconv.Itoa(port))) != nil; <-tick.C {
		if time.Since(began) > 10*time.Second {
			t.Fatal("the address of a test that has ended is not free again")
		}
	}
}
