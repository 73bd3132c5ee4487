package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

const (
	// identityBack is how long it may take until an agent is answered again: another storm may have stintd down meanwhile.
	identityBack = 4 * time.Minute
	probePath    = "/agent/probe"
)

var errAnswered = errors.New("an agent is answered")

// identityBlock is the configuration of an identity from a Workload API.
func identityBlock(socket string) string {
	return fmt.Sprintf("identity {\n  workload_api = %q\n  spiffe_id = %q\n}\n", "unix://"+socket, "spiffe://"+trustDomain+stintPath)
}

// identityFaults are what becomes of the source of SVIDs and bundles. None of it touches stintd itself.
func (s *soak) identityFaults() []mishap {
	p := s.provider
	faults := []mishap{
		{name: "workload API gone", do: s.loseAPI},
		{name: "workload API gone until SVIDs expire", do: s.loseSVIDs, rest: 2 * time.Minute},
		{name: "workload API without an identity for stintd", do: s.changeIdentity(func() { p.denies = true }, func() { p.denies = false })},
		{name: "bundle without the agents' root", do: s.loseRoot},
		{name: "bundle empty", do: s.changeIdentity(func() { p.bundle = []byte{} }, func() { p.bundle = nil })},
		{name: "bundle damaged", do: s.changeIdentity(func() { p.bundle = p.roots[0].Raw[:100] }, func() { p.bundle = nil })},
		{name: "root of the trust domain replaced", do: s.replaceRoot},
	}
	for i, f := range faults {
		faults[i].do = func(tb testing.TB, lasting time.Duration) {
			tb.Helper()
			s.identity.Lock() // nobody else changes it
			defer s.identity.Unlock()
			f.do(tb, lasting)
		}
	}
	return faults
}

// startFaults are what becomes of a stintd that starts while something is wrong with its source of SVIDs.
func (s *soak) startFaults() []mishap {
	return []mishap{
		{name: "stintd started without the workload API", do: s.startAlone},
		{name: "SVID files gone", do: s.fromFiles(s.loseIdentity)},
		{name: "bundle file damaged", do: s.fromFiles(s.spoilBundle)},
	}
}

func (s *soak) loseAPI(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	s.provider.leaves()
	<-time.After(lasting)
	s.provider.comes(tb)
}

// loseSVIDs takes the provider away until all SVIDs are over, stintd's and those of agents. Then nobody is let in.
func (s *soak) loseSVIDs(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	p := s.provider
	p.change(tb, func() { p.away = true })
	p.leaves()
	s.refusesAgents(tb)
	<-time.After(lasting)
	p.comes(tb)
	p.change(tb, func() { p.away = false })
	s.letsAgentsIn(tb)
}

// changeIdentity changes what the provider says for a while, and stintd goes on by what it was told before.
func (s *soak) changeIdentity(spoil, mend func()) func(testing.TB, time.Duration) {
	return func(tb testing.TB, lasting time.Duration) {
		tb.Helper()
		s.provider.change(tb, spoil)
		<-time.After(lasting)
		s.provider.change(tb, mend)
	}
}

// loseRoot hands stintd a bundle by which no agent is one: those that are connected are cut.
func (s *soak) loseRoot(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	p, strange := s.provider, newAuthority(tb)
	p.change(tb, func() { p.bundle = strange.cert.Raw })
	s.refusesAgents(tb)
	<-time.After(lasting)
	p.change(tb, func() { p.bundle = nil })
	s.letsAgentsIn(tb)
}

// replaceRoot is how a trust domain gets a new root: both are trusted for a while, then SVIDs are of the new one, and then
// the old one is not trusted any more.
func (s *soak) replaceRoot(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	p, fresh := s.provider, newAuthority(tb)
	p.change(tb, func() { p.roots = append(p.roots, fresh.cert) })
	<-time.After(lasting)
	p.change(tb, func() { p.ca, s.site.ca = fresh, fresh })
	<-time.After(lasting)
	p.change(tb, func() { p.roots = []*x509.Certificate{fresh.cert} })
	s.letsAgentsIn(tb)
}

// startAlone lets stintd start while there is no Workload API: it ends what it can, and lets nobody in.
func (s *soak) startAlone(tb testing.TB, lasting time.Duration) {
	tb.Helper()
	s.identity.Lock()
	defer s.identity.Unlock()
	s.provider.leaves()
	s.daemon.kill(tb)
	s.daemon = s.start(tb)
	s.daemon.says(tb, "serving without an identity")
	if ready := string(s.get(tb, "/readyz")); !strings.Contains(ready, "there is no x509-svid of") {
		tb.Errorf("without an SVID, /readyz says\n%s", ready)
	}
	if err := s.probe(tb); err == nil {
		tb.Error("a stintd without an SVID lets an agent in")
	}
	<-time.After(lasting)
	s.provider.comes(tb)
	s.letsAgentsIn(tb)
}

// fromFiles lets stintd have its identity from files while something happens to them.
func (s *soak) fromFiles(do func(testing.TB, time.Duration)) func(testing.TB, time.Duration) {
	return func(tb testing.TB, lasting time.Duration) {
		tb.Helper()
		s.identity.Lock()
		defer s.identity.Unlock()
		s.writeIdentity(tb)
		api, files := identityBlock(s.provider.socket), s.identityFiles()
		s.edit(tb, api, files)
		s.killStintd(tb, 0)
		do(tb, lasting)
		s.edit(tb, files, api)
		s.killStintd(tb, 0)
	}
}

// probe calls stintd as an agent with an SVID of its own.
func (s *soak) probe(tb testing.TB) error {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), 2*time.Second)
	defer cancel()
	c, err := agent.New(ctx, agent.WithAddr(s.grpc), agent.WithSource(s.provider.agent(tb, probePath)), agent.WithLogKey(s.key),
		agent.WithServerID("spiffe://"+trustDomain+stintPath))
	if err != nil {
		return err
	}
	_, err = c.Tasks().WhoAmI(ctx, &stintv1.WhoAmIRequest{})
	return errors.Join(err, c.Close())
}

// refusesAgents waits until agents are not let in, and letsAgentsIn until they are.
func (s *soak) refusesAgents(tb testing.TB) {
	tb.Helper()
	eventually(tb, identityBack, func() error {
		if s.probe(tb) == nil {
			return errAnswered
		}
		return nil
	})
}

func (s *soak) letsAgentsIn(tb testing.TB) {
	tb.Helper()
	eventually(tb, identityBack, func() error { return s.probe(tb) })
}
