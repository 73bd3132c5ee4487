package vault_test

import (
	"encoding/json"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/plugins/vault"
	"github.com/stint-dev/stint/plugins/vault/vaulttest"
)

// brokenOff returns credentials whose tokens a Vault had begun to revoke when it was killed: it says that they are there, and
// refuses to revoke them.
func brokenOff(t *testing.T, f *vaulttest.Fixture, b *vault.Backend) []plugins.Held {
	t.Helper()
	role := f.SSH(t)
	for began := time.Now(); time.Since(began) < time.Minute; {
		all := map[string]plugins.Held{} // by accessor
		for range 60 {
			_, held := issue(t, b, request(role, time.Minute, ip("10.0.0.10")))
			all[accessor(t, f, held.Handle)] = held
		}
		var revoking sync.WaitGroup
		for a := range all {
			revoking.Go(func() { _ = f.Root.Auth().Token().RevokeAccessorWithContext(t.Context(), a) }) // most break off
		}
		<-time.After(rand.N(60 * time.Millisecond))
		f.Server.Kill(t)
		revoking.Wait()
		f.Server.Restart(t)
		var broken []plugins.Held
		for a, held := range all {
			if answer, err := f.Root.Auth().Token().LookupAccessorWithContext(t.Context(), a); err == nil {
				if uses, ok := answer.Data["num_uses"].(json.Number); ok && strings.HasPrefix(uses.String(), "-") {
					broken = append(broken, held)
				}
			}
		}
		if len(broken) > 0 {
			return broken
		}
	}
	t.Fatal("no revoke broke off in a minute")
	return nil
}

// TestRevokeThatVaultBrokeOff: a token that Vault was killed in the middle of revoking is there until its TTL is over, opens nothing,
// and takes no other revoke. A credential whose lease is known has ended all the same; what such a token made and nobody knows is
// ended by Vault with its TTL, and not said to be before.
func TestRevokeThatVaultBrokeOff(t *testing.T) {
	t.Parallel()
	f := vaulttest.Setup(t, servertest.StartVault(t, servertest.VaultOptions{OnDisk: true}))
	b := backend(t, f.Config())
	held := brokenOff(t, f, b)[0]
	uncertain := held
	uncertain.Uncertain = true
	uncertain.Handle = plugins.Handle(strings.ReplaceAll(string(held.Handle), `"lease":`, `"was":`))
	_, err := b.Revoke(t.Context(), uncertain)
	if !errors.Is(err, plugins.ErrNotProven) || errors.Is(err, plugins.ErrMisconfigured) || errors.Is(err, plugins.ErrUnavailable) {
		t.Errorf("its sweep says: %v", err)
	}
	ending, err := b.Revoke(t.Context(), held)
	if err != nil || !strings.Contains(ending.Detail, "token unusable") {
		t.Errorf("its end says %+v, %v", ending, err)
	}
}
