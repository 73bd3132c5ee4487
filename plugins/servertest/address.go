package servertest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strconv"
	"testing"
)

// Ports are drawn from below the range that Linux hands out by itself, so that no outgoing connection takes the port of
// a server that is being restarted.
const (
	firstPort = 20000
	portRange = 12000
	portTries = 100
)

var errNoPort = errors.New("no free loopback port")

// FreeAddress returns a loopback address, host:port, for something that listens while a test runs. Nobody else gets it from here
// until the test ends, also while nobody listens there.
func FreeAddress(tb testing.TB) string {
	tb.Helper()
	host, port, err := freeAddress(tb.Context())
	give(tb, err)
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// freeAddress returns host and port of a loopback address that nobody listens on, and keeps it until ctx is done.
func freeAddress(ctx context.Context) (host string, port int, err error) {
	const loopback = "127.0.0.1"
	for range portTries {
		n, err := rand.Int(rand.Reader, big.NewInt(portRange))
		if err != nil {
			return "", 0, fmt.Errorf("draw port: %w", err)
		}
		port := firstPort + int(n.Int64())
		address := net.JoinHostPort(loopback, strconv.Itoa(port))
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err != nil {
			continue
		}
		if err := listener.Close(); err != nil {
			return "", 0, fmt.Errorf("release port: %w", err)
		}
		if reserve(ctx, address) == nil {
			return loopback, port, nil
		}
	}
	return "", 0, errNoPort
}

// reserve keeps a TCP port from all that draw one here, in other processes too, while the server that it is for is down or
// has not started. What stands for it is the UDP port of the same number, until ctx is done, or for as long as the process
// lives where it never is.
func reserve(ctx context.Context, address string) error {
	stands, err := new(net.ListenConfig).ListenPacket(ctx, "udp", address)
	if err != nil {
		return fmt.Errorf("reserve port: %w", err)
	}
	go func() {
		<-ctx.Done()
		_ = stands.Close() // nothing was written to it
	}()
	return nil
}
