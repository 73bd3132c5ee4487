package vault

import (
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"github.com/stint-dev/stint/plugins"
)

// handleVersion is the only one there has been.
const handleVersion = 1

// handle is what a plugins.Handle holds, as JSON. None of it is secret.
type handle struct {
	Version  int    `json:"v"`
	Cluster  string `json:"cluster"`            // ID of the Vault cluster that issued
	Accessor string `json:"accessor,omitempty"` // of the credential's own token; empty for what List found
	Lease    string `json:"lease,omitempty"`    // empty until it is known
	Static   bool   `json:"static,omitempty"`   // a stored value without a lease
	Until    int64  `json:"until,omitempty"`    // Unix time until when, at worst, what it stands for could work if Vault forgot it
	// Certificate: a service that checks no revocation accepts it until it expires.
	Certificate bool `json:"certificate,omitempty"`
}

func (h handle) encode() (plugins.Handle, error) {
	h.Version = handleVersion
	text, err := json.Marshal(h)
	if err != nil {
		return "", fmt.Errorf("encode handle: %w", err)
	}
	return plugins.Handle(text), nil
}

func decodeHandle(text plugins.Handle) (handle, error) {
	var h handle
	if err := json.Unmarshal([]byte(text), &h); err != nil {
		return handle{}, fmt.Errorf("%w: not of a vault backend", plugins.ErrUnknownHandle)
	}
	if h.Version != handleVersion || h.Cluster == "" || (h.Accessor == "" && h.Lease == "") {
		return handle{}, fmt.Errorf("%w: version %d, or parts are missing", plugins.ErrUnknownHandle, h.Version)
	}
	return h, nil
}

// until is in UTC: in a zone east of it, plugins.NoEnd is of the year 10000, which no JSON has.
func (h handle) until() time.Time {
	if h.Until == 0 {
		return time.Time{}
	}
	return time.Unix(h.Until, 0).UTC()
}

// maxAttempts is how many leases attempts remembers.
const maxAttempts = 8192

// attempts remembers the leases that this process has looked up as alive and begun to revoke, the latest few thousand, and
// of which a synchronous revoke succeeded: a second attempt that finds its lease gone neither blames somebody else for it,
// nor doubts what was seen.
type attempts struct {
	// mu guards what follows.
	mu    sync.Mutex
	known map[string]bool // true where it succeeded
	order []string        // a ring of the keys, oldest at next once it is full
	next  int
}

func newAttempts() *attempts { return &attempts{known: map[string]bool{}} }

func (a *attempts) begun(lease string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.known[lease]; ok {
		return
	}
	a.known[lease] = false
	if len(a.order) < maxAttempts {
		a.order = append(a.order, lease)
		return
	}
	delete(a.known, a.order[a.next])
	a.order[a.next] = lease
	a.next = (a.next + 1) % maxAttempts
}

func (a *attempts) succeeded(lease string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.known[lease]; ok {
		a.known[lease] = true
	}
}

// of says whether an attempt to revoke a lease was begun, and whether it succeeded.
func (a *attempts) of(lease string) (begun, succeeded bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	succeeded, begun = a.known[lease]
	return begun, succeeded
}

// failures are the leases whose last revoke failed. What has to wait for engines that answer asks it, and tries them again: of a
// credential that was not handed out the ledger may not know the lease, so that nobody else does. It is empty after a start,
// until teardown has tried again.
type failures struct {
	// mu guards known.
	mu    sync.Mutex
	known map[string]struct{}
}

func newFailures() *failures { return &failures{known: map[string]struct{}{}} }

func (f *failures) add(lease string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.known[lease] = struct{}{}
}

func (f *failures) remove(lease string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.known, lease)
}

// one returns any of them; false where there is none.
func (f *failures) one() (lease string, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for lease = range f.known {
		return lease, true
	}
	return "", false
}
