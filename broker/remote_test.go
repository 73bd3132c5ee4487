//go:build failpoints

package broker_test

import (
	"context"
	"fmt"
	"iter"
	"net"
	"net/rpc"
	"strings"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest"
	"github.com/stint-dev/stint/plugins/secret"
)

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
	case strings.Contains(err.Error(), plugins.ErrGone.Error()):
		return answer, fmt.Errorf("%w: %w", plugins.ErrGone, err)
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

// List yields what the inventory holds.
func (r *remote) List(_ context.Context, role plugins.Role) iter.Seq2[plugins.Found, error] {
	return func(yield func(plugins.Found, error) bool) {
		a, err := r.call(Ask{Op: opList, Role: role})
		if err != nil {
			yield(plugins.Found{}, err)
		}
		for _, f := range a.Found {
			if !yield(f, nil) {
				return
			}
		}
	}
}

// Find asks the inventory for what a handle names.
func (r *remote) Find(_ context.Context, h plugins.Handle) (plugins.Found, error) {
	a, err := r.call(Ask{Op: opFind, Handle: h})
	if err != nil {
		return plugins.Found{}, err
	}
	return a.Found[0], nil
}

// remoteVault is a remote that prepares.
type remoteVault struct {
	*remote

	// prepared runs once a token was made; its error becomes the call's.
	prepared func() error
	// hasty lets an intent be swept a second after its issue began. That is for answers that are lost and never come late.
	hasty bool
}

func (r *remoteVault) Descriptor() plugins.Descriptor {
	d := r.Memory.Descriptor()
	d.HandleIsLeaseID = false
	if r.hasty {
		d.Horizon = time.Second - lease.IssueTimeout
	}
	return d
}

func (r *remoteVault) Prepare(_ context.Context, req plugins.Request) (plugins.Prepared, error) {
	a, err := r.call(Ask{Op: plugintest.OpPrepare, Lease: req.Lease, Role: req.Role, NotAfter: req.NotAfter})
	if err == nil && r.prepared != nil {
		err = r.prepared()
	}
	return plugins.Prepared{Handle: a.Handle, State: secret.New(a.State), NotAfter: a.NotAfter}, err
}
