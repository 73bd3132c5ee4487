package broker_test

import (
	"context"
	"fmt"
	"net"
	"net/rpc"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest" //nolint:depguard // backends in memory
	"github.com/stint-dev/stint/plugins/secret"
)

// inventory serves backends in memory to a process that will be killed, so that what they hold outlives it.
type inventory struct {
	horizon *plugintest.Memory
	vault   *plugintest.Preparing
}

// Ask is a call of a backend, over the wire.
type Ask struct {
	Vault    bool
	Op       plugintest.Op
	Lease    plugins.LeaseID
	Role     plugins.Role
	NotAfter time.Time
	CSR      []byte
	Handle   plugins.Handle
	State    []byte
	Held     plugins.Held
}

// Answer is its answer.
type Answer struct {
	Handle        plugins.Handle
	State         []byte
	NotAfter      time.Time
	Password      []byte
	Chain, Bundle [][]byte
	PublicRef     string
	Ending        plugins.Ending
}

// Call carries a call out.
func (i *inventory) Call(ask Ask, answer *Answer) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var backend plugins.Backend = i.horizon
	if ask.Vault {
		backend = i.vault
	}
	req := plugins.Request{Lease: ask.Lease, Role: ask.Role, NotAfter: ask.NotAfter, CSR: ask.CSR}
	switch ask.Op {
	case plugintest.OpPrepare:
		p, err := i.vault.Prepare(ctx, req)
		answer.Handle, answer.State, answer.NotAfter = p.Handle, p.State.Expose(), p.NotAfter
		return err
	case plugintest.OpIssue:
		req.Prepared = plugins.Prepared{Handle: ask.Handle, State: secret.New(ask.State)}
		c, err := backend.Issue(ctx, req)
		answer.Handle, answer.NotAfter, answer.PublicRef = c.Handle, c.NotAfter, c.PublicRef
		answer.Password, answer.Chain, answer.Bundle = c.Fields["password"].Expose(), c.Chain, c.Bundle
		return err
	case plugintest.OpRevoke:
		var err error
		answer.Ending, err = backend.Revoke(ctx, ask.Held)
		return err
	}
	return fmt.Errorf("no call %q", ask.Op)
}

// serve serves the inventory on loopback until the test ends and returns its address.
func (i *inventory) serve(t *testing.T) string {
	t.Helper()
	server := rpc.NewServer()
	if err := server.RegisterName("Inventory", i); err != nil {
		t.Fatal(err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go server.ServeConn(conn)
		}
	}()
	return l.Addr().String()
}

// remote is a backend whose inventory is in another process.
type remote struct {
	*plugintest.Memory // for what needs no inventory

	client *rpc.Client
	vault  bool
	// after runs once an issue call has had its effect; its error becomes the call's.
	after func() error
}

func dial(t *testing.T, addr string) *rpc.Client {
	t.Helper()
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return rpc.NewClient(conn)
}

func (r *remote) call(ask Ask) (Answer, error) {
	ask.Vault = r.vault
	var answer Answer
	err := r.client.Call("Inventory.Call", ask, &answer)
	switch {
	case err == nil:
		return answer, nil
	case strings.Contains(err.Error(), plugins.ErrNotIssued.Error()):
		return answer, fmt.Errorf("%w: %w", plugins.ErrNotIssued, err)
	default:
		return answer, fmt.Errorf("%w: %w", plugins.ErrUnavailable, err)
	}
}

func (r *remote) Issue(_ context.Context, req plugins.Request) (plugins.Credential, error) {
	a, err := r.call(Ask{
		Op: plugintest.OpIssue, Lease: req.Lease, Role: req.Role, NotAfter: req.NotAfter, CSR: req.CSR,
		Handle: req.Prepared.Handle, State: req.Prepared.State.Expose(),
	})
	if err == nil && r.after != nil {
		err = r.after()
	}
	if err != nil {
		return plugins.Credential{}, err
	}
	return plugins.Credential{
		Handle: a.Handle, NotAfter: a.NotAfter, PublicRef: a.PublicRef, Chain: a.Chain, Bundle: a.Bundle,
		Fields: map[string]secret.Value{"password": secret.New(a.Password)},
	}, nil
}

func (r *remote) Revoke(_ context.Context, held plugins.Held) (plugins.Ending, error) {
	a, err := r.call(Ask{Op: plugintest.OpRevoke, Held: held})
	return a.Ending, err
}

// remoteVault is a remote that prepares.
type remoteVault struct {
	*remote

	// prepared runs once a token was made; its error becomes the call's.
	prepared func() error
}

func (r *remoteVault) Descriptor() plugins.Descriptor {
	d := r.Memory.Descriptor()
	d.HandleIsLeaseID = false
	return d
}

func (r *remoteVault) Prepare(_ context.Context, req plugins.Request) (plugins.Prepared, error) {
	a, err := r.call(Ask{Op: plugintest.OpPrepare, Lease: req.Lease, Role: req.Role, NotAfter: req.NotAfter})
	if err == nil && r.prepared != nil {
		err = r.prepared()
	}
	return plugins.Prepared{Handle: a.Handle, State: secret.New(a.State), NotAfter: a.NotAfter}, err
}
