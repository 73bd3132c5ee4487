package stepca

import (
	"errors"
	"fmt"
	"strings"

	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// maxURI is the longest SPIFFE ID in bytes (SPIFFE-ID section 2.3).
const maxURI = 2048

const (
	agentSegment = "/agent/"
	taskSegment  = "/task/"
)

// ErrNotTaskURI says that a SPIFFE ID does not name a task.
var ErrNotTaskURI = errors.New("not the SPIFFE ID of a task")

// TaskURI names a task's certificate: spiffe://<task domain>/agent/<agent's trust domain>/<agent's path>/task/<task ID>.
// The task ID is a UUID in its canonical form. It fails with ErrNotTaskURI when the result is longer than 2,048 bytes.
func TaskURI(taskDomain spiffeid.TrustDomain, agent spiffeid.ID, taskID string) (spiffeid.ID, error) {
	if err := checkTaskID(taskID); err != nil {
		return spiffeid.ID{}, err
	}
	if taskDomain.IsZero() || agent.IsZero() {
		return spiffeid.ID{}, fmt.Errorf("%w: no trust domain or no agent", ErrNotTaskURI)
	}
	path := agentSegment + agent.TrustDomain().Name() + agent.Path() + taskSegment + taskID
	id, err := spiffeid.FromPath(taskDomain, path)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("%w: %w", ErrNotTaskURI, err)
	}
	if n := len(id.String()); n > maxURI {
		return spiffeid.ID{}, fmt.Errorf("%w: it would have %d bytes, %d are allowed", ErrNotTaskURI, n, maxURI)
	}
	return id, nil
}

// ParseURI is the inverse of TaskURI. It reads from the end, so an agent whose own path holds /task/ is read right. The caller
// must have checked that the ID is of the task trust domain. Errors wrap ErrNotTaskURI.
func ParseURI(id spiffeid.ID) (agent spiffeid.ID, taskID string, err error) {
	if len(id.String()) > maxURI {
		return spiffeid.ID{}, "", fmt.Errorf("%w: longer than %d bytes", ErrNotTaskURI, maxURI)
	}
	rest, ok := strings.CutPrefix(id.Path(), agentSegment)
	if !ok {
		return spiffeid.ID{}, "", fmt.Errorf("%w: its path does not begin with %s", ErrNotTaskURI, agentSegment)
	}
	at := strings.LastIndex(rest, taskSegment)
	if at < 0 {
		return spiffeid.ID{}, "", fmt.Errorf("%w: its path does not end in %s<task ID>", ErrNotTaskURI, taskSegment)
	}
	taskID = rest[at+len(taskSegment):]
	if err = checkTaskID(taskID); err != nil {
		return spiffeid.ID{}, "", err
	}
	agent, err = parseAgent(rest[:at])
	if err != nil {
		return spiffeid.ID{}, "", err
	}
	return agent, taskID, nil
}

// parseAgent reads <trust domain>[/<path>].
func parseAgent(text string) (spiffeid.ID, error) {
	name, _, _ := strings.Cut(text, "/")
	domain, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("%w: agent's trust domain: %w", ErrNotTaskURI, err)
	}
	agent, err := spiffeid.FromPath(domain, text[len(name):])
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("%w: agent: %w", ErrNotTaskURI, err)
	}
	return agent, nil
}

func checkTaskID(taskID string) error {
	id, err := uuid.Parse(taskID)
	if err != nil || id.String() != taskID {
		return fmt.Errorf("%w: task ID %.64q is not a lower-case UUID", ErrNotTaskURI, taskID)
	}
	return nil
}
