package plugintest_test

import (
	"testing"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/plugintest"
)

// backend is what Memory and Preparing have in common for a harness.
type backend interface {
	plugins.Backend
	Break()
	Heal()
}

func harness(b backend, m *plugintest.Memory, config string) plugintest.Harness {
	bad := plugins.Role{Name: "bad", Config: []byte(`{"ends":"sometime"}`)}
	return plugintest.Harness{
		Backend:  b,
		Role:     plugins.Role{Name: "r", Config: []byte(config), AcceptPermanent: true},
		BadRoles: map[string]plugins.Role{"unknown kind of end": bad},
		Works:    m.Works,
		Request: func(testing.TB) plugins.Request {
			if config == `{"csr":true}` {
				return plugins.Request{CSR: []byte("csr")}
			}
			return plugins.Request{}
		},
		Break: func(testing.TB) { b.Break() },
		Heal:  func(testing.TB) { b.Heal() },
	}
}

// systems are two, of which one has the accounts of the harness's role.
func systems() []plugins.System {
	return []plugins.System{{Name: "other"}, {Name: "orders", Roles: []string{"r"}}}
}

// TestMemoryKeepsTheContract runs the suite on each kind of the backend in memory.
func TestMemoryKeepsTheContract(t *testing.T) {
	for _, config := range []string{`{}`, `{"csr":true}`, `{"ends":"lapsing"}`, `{"ends":"never"}`} {
		t.Run(config, func(t *testing.T) {
			m := plugintest.NewMemory(plugintest.MemoryConfig{Systems: systems()})
			plugintest.Run(t, harness(m, m, config))
			p := plugintest.NewPreparing(plugintest.MemoryConfig{Horizon: horizon, Systems: systems()})
			plugintest.Run(t, harness(p, p.Memory, config))
			if left := len(m.Alive()) + len(p.Alive()) + p.Tokens(); config == `{}` && left != 0 {
				t.Errorf("the suite left %d alive", left)
			}
		})
	}
}
