package attestor

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Domains says which trust domains agents may come from. It is made from configuration alone: what a Workload API
// hands over beyond it is refused. The zero value accepts nobody.
type Domains struct {
	own       spiffeid.TrustDomain
	task      spiffeid.TrustDomain
	federated []spiffeid.TrustDomain
}

// NewDomains returns the value for Stint's own trust domain, the task trust domain (zero if no certificates are
// issued), and the federated ones. The task trust domain among the accepted ones is an error.
func NewDomains(own, task spiffeid.TrustDomain, federated ...spiffeid.TrustDomain) (Domains, error) {
	if own.IsZero() {
		return Domains{}, errors.New("own trust domain is missing")
	}
	d := Domains{own: own, task: task}
	for _, td := range federated {
		if td.IsZero() {
			return Domains{}, errors.New("federated trust domain is empty")
		}
		if td != own && !slices.Contains(d.federated, td) {
			d.federated = append(d.federated, td)
		}
	}
	if !task.IsZero() && slices.Contains(d.Accepted(), task) {
		return Domains{}, fmt.Errorf("task trust domain %s must not be one that agents come from", task.Name())
	}
	return d, nil
}

// Own returns Stint's own trust domain.
func (d Domains) Own() spiffeid.TrustDomain { return d.own }

// Task returns the task trust domain; zero if there is none.
func (d Domains) Task() spiffeid.TrustDomain { return d.task }

// Accepted returns the trust domains that agents may come from, Stint's own first.
func (d Domains) Accepted() []spiffeid.TrustDomain {
	if d.own.IsZero() {
		return nil
	}
	return append([]spiffeid.TrustDomain{d.own}, d.federated...)
}

// Check returns nil if agents may come from td, else an [*Error] of kind [ErrTaskDomain] or [ErrForeignTrustDomain].
func (d Domains) Check(td spiffeid.TrustDomain) error {
	switch {
	case td.IsZero():
		return Refuse(ErrForeignTrustDomain, "no trust domain", nil)
	case td == d.task:
		return Refuse(ErrTaskDomain, fmt.Sprintf("a certificate of %s was issued for a task and names no agent; use your own SVID",
			td.Name()), nil)
	case td == d.own, slices.Contains(d.federated, td):
		return nil
	}
	return Refuse(ErrForeignTrustDomain, fmt.Sprintf("trust domain %s is not accepted here", td.Name()), nil)
}
