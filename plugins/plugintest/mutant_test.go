package plugintest_test

import (
	"context"
	"errors"
	"iter"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest"
)

// mutantVariable names the mutant that a child process runs the suite on.
const mutantVariable = "PLUGINTEST_MUTANT"

// mutant is a Memory that breaks the contract in one way, where a field is set.
type mutant struct {
	*plugintest.Memory

	descriptor func(plugins.Descriptor) plugins.Descriptor
	checkRole  func(plugins.RoleInfo, error) (plugins.RoleInfo, error)
	issue      func(context.Context, plugins.Request) (plugins.Credential, error)
	revoke     func(context.Context, plugins.Held) (plugins.Ending, error)
	list       func(context.Context, plugins.Role) iter.Seq2[plugins.Found, error]
	find       func(context.Context, plugins.Handle) (plugins.Found, error)
	key        func(plugins.Handle) string
	accounts   func(context.Context, string) iter.Seq2[plugins.Account, error]
	issued     func(context.Context, plugins.Found) plugins.Found // of a registrar
}

func (m *mutant) Descriptor() plugins.Descriptor {
	if m.descriptor != nil {
		return m.descriptor(m.Memory.Descriptor())
	}
	return m.Memory.Descriptor()
}

func (m *mutant) CheckRole(r plugins.Role) (plugins.RoleInfo, error) {
	info, err := m.Memory.CheckRole(r)
	if m.checkRole != nil {
		return m.checkRole(info, err)
	}
	return info, err
}

func (m *mutant) Issue(ctx context.Context, req plugins.Request) (plugins.Credential, error) {
	if m.issue != nil {
		return m.issue(ctx, req)
	}
	return m.Memory.Issue(ctx, req)
}

func (m *mutant) Revoke(ctx context.Context, held plugins.Held) (plugins.Ending, error) {
	if m.revoke != nil {
		return m.revoke(ctx, held)
	}
	return m.Memory.Revoke(ctx, held)
}

func (m *mutant) List(ctx context.Context, role plugins.Role) iter.Seq2[plugins.Found, error] {
	if m.list != nil {
		return m.list(ctx, role)
	}
	return m.Memory.List(ctx, role)
}

func (m *mutant) Find(ctx context.Context, h plugins.Handle) (plugins.Found, error) {
	if m.find != nil {
		return m.find(ctx, h)
	}
	return m.Memory.Find(ctx, h)
}

func (m *mutant) Key(h plugins.Handle) string {
	if m.key != nil {
		return m.key(h)
	}
	return m.Memory.Key(h)
}

func (m *mutant) Accounts(ctx context.Context, system string) iter.Seq2[plugins.Account, error] {
	if m.accounts != nil {
		return m.accounts(ctx, system)
	}
	return m.Memory.Accounts(ctx, system)
}

// breach is how a mutant breaks the contract, and the subtest that must notice.
type breach struct {
	change func(*mutant)
	want   string
}

// mutants break one rule each; the subtest named must notice.
func mutants() map[string]breach {
	var calls atomic.Int64
	after := func(m *mutant, change func(*plugins.Credential)) {
		m.issue = func(ctx context.Context, req plugins.Request) (plugins.Credential, error) {
			cred, err := m.Memory.Issue(ctx, req)
			if err == nil {
				change(&cred)
			}
			return cred, err
		}
	}
	all := map[string]breach{
		"descriptor changes": {func(m *mutant) {
			m.descriptor = func(d plugins.Descriptor) plugins.Descriptor {
				d.Horizon = time.Duration(calls.Add(1))
				return d
			}
		}, "descriptor"},
		"takes every role": {func(m *mutant) {
			m.checkRole = func(plugins.RoleInfo, error) (plugins.RoleInfo, error) {
				return m.Memory.CheckRole(plugins.Role{})
			}
		}, "roles"},
		"revoke does nothing": {func(m *mutant) {
			m.revoke = func(context.Context, plugins.Held) (plugins.Ending, error) {
				return plugins.Ending{Proof: plugins.ReadBack, At: time.Now()}, nil
			}
		}, "life"},
		"second revoke fails": {func(m *mutant) {
			seen := map[plugins.LeaseID]bool{}
			m.revoke = func(ctx context.Context, held plugins.Held) (plugins.Ending, error) {
				if seen[held.Lease] {
					return plugins.Ending{}, plugins.ErrNotProven
				}
				seen[held.Lease] = true
				return m.Memory.Revoke(ctx, held)
			}
		}, "life"},
		"no proof": {func(m *mutant) {
			m.revoke = func(ctx context.Context, held plugins.Held) (plugins.Ending, error) {
				end, err := m.Memory.Revoke(ctx, held)
				end.Proof = ""
				return end, err
			}
		}, "life"},
		"secret in the reference": {func(m *mutant) {
			after(m, func(c *plugins.Credential) { c.PublicRef = string(c.Fields["password"].Expose()) })
		}, "life"},
		"no end": {func(m *mutant) {
			after(m, func(c *plugins.Credential) { c.NotAfter = c.NotAfter.Add(time.Hour) })
		}, "not_after"},
		"one handle for all": {func(m *mutant) {
			after(m, func(c *plugins.Credential) { c.Handle = plugins.Handle(strings.Repeat("0", 32)) })
		}, "many_at_once"},
		"takes any handle": {func(m *mutant) {
			m.revoke = func(ctx context.Context, held plugins.Held) (plugins.Ending, error) {
				held.Handle = ""
				return m.Memory.Revoke(ctx, held)
			}
		}, "unknown_handle"},
		"ignores the context": {func(m *mutant) {
			m.issue = func(ctx context.Context, req plugins.Request) (plugins.Credential, error) {
				return m.Memory.Issue(context.WithoutCancel(ctx), req)
			}
		}, "context_is_done"},
		"bare errors": {func(m *mutant) {
			m.issue = func(ctx context.Context, req plugins.Request) (plugins.Credential, error) {
				cred, err := m.Memory.Issue(ctx, req)
				if err != nil {
					err = errors.New("something went wrong")
				}
				return cred, err
			}
		}, "issue_is_cancelled"},
		"claims without the backend": {func(m *mutant) {
			m.revoke = func(ctx context.Context, held plugins.Held) (plugins.Ending, error) {
				end, err := m.Memory.Revoke(ctx, held)
				if errors.Is(err, plugins.ErrUnavailable) {
					end, err = plugins.Ending{Proof: plugins.ReadBack, At: time.Now()}, nil
				}
				return end, err
			}
		}, "break_and_heal"},
		"lists nothing": {func(m *mutant) {
			m.list = func(context.Context, plugins.Role) iter.Seq2[plugins.Found, error] {
				return func(func(plugins.Found, error) bool) {}
			}
		}, "list"},
		"lists twice": {func(m *mutant) {
			m.list = func(ctx context.Context, role plugins.Role) iter.Seq2[plugins.Found, error] {
				return func(yield func(plugins.Found, error) bool) {
					for found, err := range m.Memory.List(ctx, role) {
						for range 2 {
							if !yield(found, err) {
								return
							}
						}
					}
				}
			}
		}, "list"},
		"finds what is gone": {func(m *mutant) {
			m.find = func(ctx context.Context, h plugins.Handle) (plugins.Found, error) {
				found, err := m.Memory.Find(ctx, h)
				if errors.Is(err, plugins.ErrGone) {
					return plugins.Found{Handle: h, PublicRef: "m-" + string(h)}, nil
				}
				return found, err
			}
		}, "list"},
		"gone because it is broken": {func(m *mutant) {
			m.find = func(ctx context.Context, h plugins.Handle) (plugins.Found, error) {
				found, err := m.Memory.Find(ctx, h)
				if err != nil {
					err = plugins.ErrGone
				}
				return found, err
			}
		}, "break_and_heal"},
		"one key for all": {func(m *mutant) { m.key = func(plugins.Handle) string { return "key" } }, "list"},
		"leaves goroutines": {func(m *mutant) {
			m.issue = func(ctx context.Context, req plugins.Request) (plugins.Credential, error) {
				go func() { <-context.WithoutCancel(ctx).Done() }()
				return m.Memory.Issue(ctx, req)
			}
		}, "goroutines"},
	}
	maps.Copy(all, accountMutants())
	maps.Copy(all, registerMutants())
	return all
}

func accountMutants() map[string]breach {
	return map[string]breach{
		"lists no accounts": {func(m *mutant) {
			m.accounts = func(context.Context, string) iter.Seq2[plugins.Account, error] {
				return func(func(plugins.Account, error) bool) {}
			}
		}, "accounts"},
		"lists accounts that are over": {func(m *mutant) {
			over := map[string]plugins.Account{}
			m.accounts = func(ctx context.Context, system string) iter.Seq2[plugins.Account, error] {
				return func(yield func(plugins.Account, error) bool) {
					for account, err := range m.Memory.Accounts(ctx, system) {
						if err != nil {
							yield(account, err)
							return
						}
						over[account.Name] = account
					}
					for _, account := range over {
						if !yield(account, nil) {
							return
						}
					}
				}
			}
		}, "accounts"},
		"any system is empty": {func(m *mutant) {
			m.accounts = func(ctx context.Context, system string) iter.Seq2[plugins.Account, error] {
				return func(yield func(plugins.Account, error) bool) {
					for account, err := range m.Memory.Accounts(ctx, system) {
						if err != nil || !yield(account, nil) {
							return
						}
					}
				}
			}
		}, "accounts"},
	}
}

// runMutant runs the suite on a mutant.
func runMutant(t *testing.T, change breach) {
	t.Helper()
	m := &mutant{Memory: plugintest.NewMemory(plugintest.MemoryConfig{Systems: systems()})}
	change.change(m)
	h := harness(m, m.Memory, `{}`)
	if m.issued != nil {
		h.Backend = &registrar{mutant: m}
	}
	plugintest.Run(t, h)
}

// TestSuiteNoticesMutants checks that each rule of the contract that is broken is noticed. It runs itself for each mutant, whose
// name is in the environment then.
func TestSuiteNoticesMutants(t *testing.T) {
	if change, ok := mutants()[os.Getenv(mutantVariable)]; ok {
		runMutant(t, change)
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range mutants() {
		t.Run(name, func(t *testing.T) {
			child := exec.CommandContext(t.Context(), self, "-test.run=^TestSuiteNoticesMutants$")
			child.Env = append(slices.Clone(os.Environ()), mutantVariable+"="+name)
			out, err := child.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL: TestSuiteNoticesMutants/"+m.want) {
				t.Errorf("the suite did not notice in %q: %v\n%s", m.want, err, out)
			}
		})
	}
}
