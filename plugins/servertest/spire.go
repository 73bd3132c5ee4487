package servertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// SPIRE is a running SPIRE server of the trust domain example.org, and one agent of it, which attests workloads by their
// uid and asks the server for changes every second. The server keeps its entries in SQLite.
type SPIRE struct {
	// ServerBinary is the program that runs the server, and administers it through ServerSocket.
	ServerBinary string
	// ServerSocket is the path of the server's own socket.
	ServerSocket string
	// AgentID is the SPIFFE ID of the agent: the parent of entries of workloads on this machine.
	AgentID string
	// WorkloadAPI is the agent's address, such as unix:///tmp/x/agent.sock.
	WorkloadAPI string

	server, agent Process
	home          string // removed at the end
}

// StartSPIRE starts a SPIRE server and agent that end with the test.
func StartSPIRE(tb testing.TB) *SPIRE {
	tb.Helper()
	spire, err := newSPIRE(tb.Context())
	return untilTheEnd(tb, spire, err)
}

// Administer runs spire-server with these words, such as "entry", "show", and returns what it prints.
func (s *SPIRE) Administer(tb testing.TB, words ...string) string {
	tb.Helper()
	out, err := s.administer(tb.Context(), words...)
	give(tb, err)
	return string(out)
}

func newSPIRE(ctx context.Context) (*SPIRE, error) {
	server, agent, err := findSPIRE()
	if err != nil {
		return nil, err
	}
	_, port, err := freeAddress(ctx)
	if err != nil {
		return nil, err
	}
	// Not the test's own directory: its path may be too long for a socket.
	home, err := os.MkdirTemp("", "stint-spire-")
	if err != nil {
		return nil, fmt.Errorf("make directory of spire: %w", err)
	}
	s := &SPIRE{
		ServerBinary: server, ServerSocket: filepath.Join(home, "server.sock"), AgentID: "spiffe://example.org/node/here",
		WorkloadAPI: "unix://" + filepath.Join(home, "agent.sock"), home: home,
	}
	if err := s.run(ctx, agent, port); err != nil {
		return nil, errors.Join(err, s.remove())
	}
	return s, nil
}

// run starts the server, and then the agent with a join token of the server's.
func (s *SPIRE) run(ctx context.Context, agent string, port int) error {
	if err := s.launch(ctx, &s.server, s.ServerBinary, s.ServerSocket, fmt.Sprintf(spireServerConfig, port, s.ServerSocket,
		filepath.Join(s.home, "server"), filepath.Join(s.home, "server", "entries.sqlite3"))); err != nil {
		return err
	}
	answer, err := s.administer(ctx, "token", "generate", "-spiffeID", s.AgentID, "-output", "json")
	if err != nil {
		return err
	}
	var token struct{ Value string }
	if err := json.Unmarshal(answer, &token); err != nil {
		return fmt.Errorf("read join token: %w", err)
	}
	file, socket := filepath.Join(s.home, "join-token"), filepath.Join(s.home, "agent.sock")
	if err := os.WriteFile(file, []byte(token.Value), 0o600); err != nil {
		return fmt.Errorf("write join token: %w", err)
	}
	return s.launch(ctx, &s.agent, agent, socket, fmt.Sprintf(spireAgentConfig, port, socket, filepath.Join(s.home, "agent"), file))
}

// launch starts one of the two in a directory of its own, and returns when its socket answers: the server's does when it
// has its CA, the agent's when the server has let it in.
func (s *SPIRE) launch(ctx context.Context, p *Process, path, socket, config string) error {
	dir := filepath.Join(s.home, filepath.Base(path))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("make directory of spire: %w", err)
	}
	file := filepath.Join(dir, "spire.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return fmt.Errorf("write configuration of spire: %w", err)
	}
	p.command = command{
		path: path, args: []string{"run", "-config", file}, env: []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")}, dir: dir,
		stop: syscall.SIGTERM, kill: syscall.SIGKILL,
		ready: func(ctx context.Context) error {
			conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
			if err != nil {
				return fmt.Errorf("connect to spire: %w", err)
			}
			return conn.Close()
		},
	}
	return p.start(ctx)
}

func (s *SPIRE) administer(ctx context.Context, words ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, s.ServerBinary, append(words, "-socketPath", s.ServerSocket)...) //nolint:gosec // the test names the binary
	cmd.Env = s.server.command.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("run spire-server: %w: %s", err, out)
	}
	return out, nil
}

// remove ends both and deletes their files.
func (s *SPIRE) remove() error {
	return errors.Join(s.agent.end(syscall.SIGTERM), s.server.end(syscall.SIGTERM), os.RemoveAll(s.home))
}

// spireServerConfig takes port, socket, directory and database.
const spireServerConfig = `server {
  bind_address = "127.0.0.1"
  bind_port    = %d
  socket_path  = %q
  trust_domain = "example.org"
  data_dir     = %q
  log_level    = "WARN"
}
plugins {
  DataStore "sql" {
    plugin_data {
      database_type     = "sqlite3"
      connection_string = %q
    }
  }
  KeyManager "memory" { plugin_data {} }
  NodeAttestor "join_token" { plugin_data {} }
}
`

// spireAgentConfig takes the server's port, socket, directory and the file of the join token. Bootstrapping is safe: the
// server is on this machine and is the test's.
const spireAgentConfig = `agent {
  server_address     = "127.0.0.1"
  server_port        = %d
  socket_path        = %q
  trust_domain       = "example.org"
  data_dir           = %q
  join_token_file    = %q
  insecure_bootstrap = true
  log_level          = "WARN"
  experimental { sync_interval = "1s" }
}
plugins {
  KeyManager "memory" { plugin_data {} }
  NodeAttestor "join_token" { plugin_data {} }
  WorkloadAttestor "unix" { plugin_data {} }
}
`
