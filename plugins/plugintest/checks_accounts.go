package plugintest

import (
	"reflect"
	"slices"
	"testing"

	"github.com/stint-dev/stint/plugins"
)

// accounts expects a credential's account at its system while it lives, and not afterwards.
func (s *suite) accounts(t *testing.T) {
	lister, ok := s.Backend.(plugins.AccountLister)
	if !ok || len(lister.Systems()) == 0 {
		t.Skip("it has no systems to list")
	}
	systems := lister.Systems()
	got := s.issue(t)
	for _, system := range systems {
		found := s.accountsOf(t, lister, system.Name)
		account, there := found[got.cred.PublicRef]
		if !slices.Contains(system.Roles, s.Role.Name) {
			continue
		}
		if !there || account.Dead {
			t.Errorf("%s is alive, and at %s there is %+v, %t", got.cred.PublicRef, system.Name, account, there)
		}
	}
	if s.info.Ends == plugins.EndsRevocable {
		s.checkEnded(t, got, s.revoke(t, got.held()))
		for _, system := range systems {
			if account, there := s.accountsOf(t, lister, system.Name)[got.cred.PublicRef]; there && !account.Dead {
				t.Errorf("%s is revoked and still at %s", got.cred.PublicRef, system.Name)
			}
		}
	}
	if again := lister.Systems(); !reflect.DeepEqual(again, systems) {
		t.Errorf("Systems changed from %+v to %+v", systems, again)
	}
	var last error
	for _, err := range lister.Accounts(s.context(t), "plugintest-no-such-system") {
		last = err
	}
	checkError(t, last)
}

// accountsOf returns the accounts of a system by name, and checks that none is listed twice.
func (s *suite) accountsOf(t *testing.T, lister plugins.AccountLister, system string) map[string]plugins.Account {
	t.Helper()
	seen := map[string]plugins.Account{}
	for account, err := range lister.Accounts(s.context(t), system) {
		if err != nil {
			t.Fatalf("Accounts of %s: %v", system, err)
		}
		if _, twice := seen[account.Name]; twice || account.Name == "" {
			t.Errorf("%s lists the account %q, which has no name or was listed before", system, account.Name)
		}
		seen[account.Name] = account
	}
	return seen
}
