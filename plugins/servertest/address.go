package servertest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strconv"
)

// Ports are drawn from below the range that Linux hands out by itself, so that no outgoing connection takes the port of
// a server that is being restarted.
const (
	firstPort = 20000
	portRange = 12000
	portTries = 100
)

var errNoPort = errors.New("no free loopback port")

// freeAddress returns host and port of a loopback address that nobody listens on.
func freeAddress(ctx context.Context) (host string, port int, err error) {
	const loopback = "127.0.0.1"
	for range portTries {
		n, err := rand.Int(rand.Reader, big.NewInt(portRange))
		if err != nil {
			return "", 0, fmt.Errorf("draw port: %w", err)
		}
		port := firstPort + int(n.Int64())
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(loopback, strconv.Itoa(port)))
		if err != nil {
			continue
		}
		if err := listener.Close(); err != nil {
			return "", 0, fmt.Errorf("release port: %w", err)
		}
		return loopback, port, nil
	}
	return "", 0, errNoPort
}
