package server

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/fault"
)

// However many callers there are, what is remembered of them is bounded, and the good ones are forgotten first.
func TestPenaltiesAreBounded(t *testing.T) {
	t.Parallel()
	p, now := newPenalties(), time.Unix(0, 0)
	for range penaltyBurst + 1 {
		p.add("bad", now)
	}
	for i := range maxPenalties + 10 {
		p.add(strconv.Itoa(i), now)
	}
	if len(p.callers) > maxPenalties+1 || p.wait("bad", now) <= 0 {
		t.Errorf("%d callers, bad waits %v", len(p.callers), p.wait("bad", now))
	}
	if p.wait("never seen", now) != 0 {
		t.Error("who was never refused waits")
	}
	now = now.Add(5 * time.Second)
	p.add("another", now)
	if len(p.callers) > 10 || p.callers["bad"] == nil {
		t.Errorf("%d callers are remembered, bad among them: %v", len(p.callers), p.callers["bad"] != nil)
	}
}

// counting is a Refuser.
type counting map[fault.Reason]int

func (c counting) Refused(_ audit.Actor, reason fault.Reason) { c[reason]++ }

func TestHandshakeRefused(t *testing.T) {
	t.Parallel()
	count := counting{}
	refused := HandshakeRefused(count, "grpc")
	refused(&net.TCPAddr{}, fmt.Errorf("read: %w", syscall.ECONNRESET))
	refused(&net.TCPAddr{}, io.EOF)
	refused(&net.TCPAddr{}, errors.New("tls: client didn't provide a certificate"))
	refused(&net.TCPAddr{}, attestor.Refuse(attestor.ErrUntrusted, "no", nil))
	refused(&net.TCPAddr{}, attestor.Refuse(attestor.ErrExpired, "late", nil))
	if len(count) != 2 || count[fault.Unauthenticated] != 2 || count[fault.SVIDExpired] != 1 {
		t.Errorf("counted %v", count)
	}
}

func TestRefusalOf(t *testing.T) {
	t.Parallel()
	cause := errors.New("the bundle endpoint said hunter2")
	f := refusalOf(attestor.Refuse(attestor.ErrUnavailable, "no bundle", cause))
	if f.RetryAfter == 0 || f.Message != "no bundle" || !errors.Is(f, cause) || f.Metadata["problem"] != "unavailable" {
		t.Errorf("got %+v", f)
	}
	if f = refusalOf(cause); f.Reason != fault.Unauthenticated || f.Message == cause.Error() {
		t.Errorf("got %+v", f)
	}
}

func TestNewWantsEverything(t *testing.T) {
	t.Parallel()
	if _, err := New(Config{}); err == nil {
		t.Error("an empty configuration is accepted")
	}
}
