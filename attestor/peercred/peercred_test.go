//go:build linux

package peercred_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/attestor/peercred"
)

// shortDir is a directory whose path leaves room for a socket's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "pc") //nolint:usetesting // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestPeerOverGRPC(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "admin.sock")
	l, err := peercred.Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if info, statErr := os.Stat(path); statErr != nil || info.Mode() != os.ModeSocket|0o660 {
		t.Errorf("mode %v, %v", info.Mode(), statErr)
	}
	var got attestor.Identity
	server := grpc.NewServer(grpc.Creds(peercred.Credentials{}), grpc.UnaryInterceptor(
		func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			p, _ := peer.FromContext(ctx)
			local, ok := p.AuthInfo.(attestor.PeerCredential)
			if !ok {
				return nil, errors.New("no peer credential")
			}
			cred := local.Local()
			var attestErr error
			got, attestErr = peercred.Attestor{}.Attest(ctx, attestor.Evidence{Local: &cred})
			if attestErr != nil {
				return nil, attestErr
			}
			return next(ctx, req)
		}))
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()

	client, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	if _, err := grpc_health_v1.NewHealthClient(client).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil {
		t.Fatal(err)
	}
	if int(got.Local.UID) != os.Getuid() || int(got.Local.PID) != os.Getpid() || got.Method != attestor.MethodLocal {
		t.Errorf("attested %+v", got)
	}
	server.Stop()
	if err := <-done; err != nil {
		t.Errorf("serve: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

func TestListenReplacesOnlyADeadSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(shortDir(t), "s.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	if err = dead.Close(); err != nil {
		t.Fatal(err)
	}
	live, err := peercred.Listen(t.Context(), path)
	if err != nil {
		t.Fatalf("over a dead socket: %v", err)
	}
	defer func() { _ = live.Close() }()
	if _, err := peercred.Listen(t.Context(), path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("over a live socket: %v", err)
	}
	file := filepath.Join(filepath.Dir(path), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := peercred.Listen(t.Context(), file); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("over a file: %v", err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 2 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestListenRefusesPaths(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{
		"relative.sock": "absolute",
		filepath.Join(shortDir(t), strings.Repeat("x", 120)): "too long",
		"/nonexistent-directory/s.sock":                      "no such file",
	} {
		if _, err := peercred.Listen(t.Context(), path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

func TestOnlyUnixSocketsHavePeers(t *testing.T) {
	t.Parallel()
	a, b := net.Pipe()
	defer func() { _, _ = a.Close(), b.Close() }()
	if _, err := peercred.Of(a); err == nil {
		t.Error("a pipe has a peer credential")
	}
	if _, err := (peercred.Attestor{}).Attest(t.Context(), attestor.Evidence{Token: "x"}); !errors.Is(err, attestor.ErrNoEvidence) {
		t.Errorf("attested without a peer: %v", err)
	}
}
