package broker_test

import (
	"context"
	"fmt"
	"net"
	"net/rpc"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest"
	"github.com/stint-dev/stint/plugins/secret"
)

// inventory serves backends in memory to a process that will be killed, so that what they hold outlives it.
type inventory struct {
	horizon *plugintest.Memory
	vault   *plugintest.Preparing
}

// Calls that no fault is injected into.
const (
	opList plugintest.Op = "list"
	opFind plugintest.Op = "find"
	opDrop plugintest.Op = "drop" // not of the contract: the backend ends a credential by itself
)

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
	Found         []plugins.Found
}

// Call carries a call out.
func (i *inventory) Call(ask Ask, answer *Answer) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var backend interface {
		plugins.Backend
		plugins.Lister
		Drop(id plugins.LeaseID)
	} = i.horizon
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
	case opList:
		for found, err := range backend.List(ctx, ask.Role) {
			if err != nil {
				return err
			}
			answer.Found = append(answer.Found, found)
		}
		return nil
	case opFind:
		found, err := backend.Find(ctx, ask.Handle)
		answer.Found = []plugins.Found{found}
		return err
	case opDrop:
		backend.Drop(ask.Lease)
		return nil
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
