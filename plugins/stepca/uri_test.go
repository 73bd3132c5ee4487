package stepca

import (
	"errors"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// TestTaskURI goes there and back, also with agents whose path looks like a task's.
func TestTaskURI(t *testing.T) {
	domain := spiffeid.RequireTrustDomainFromString(testDomain)
	for _, agent := range []string{
		testAgent, "spiffe://example.org", "spiffe://example.org/task/" + testTask, "spiffe://example.org/a/task/b", "spiffe://tasks.example.org/agent/x",
	} {
		want := spiffeid.RequireFromString(agent)
		uri, err := TaskURI(domain, want, testTask)
		if err != nil {
			t.Fatal(err)
		}
		got, task, err := ParseURI(uri)
		if err != nil || got != want || task != testTask {
			t.Errorf("%s: read %s, %s, %v", uri, got, task, err)
		}
	}
}

// TestTaskURIRefuses what cannot be named.
func TestTaskURIRefuses(t *testing.T) {
	domain := spiffeid.RequireTrustDomainFromString(testDomain)
	agent := spiffeid.RequireFromString(testAgent)
	long := spiffeid.RequireFromString(testAgent + "/" + strings.Repeat("x", maxURI))
	for name, err := range map[string]error{
		"upper case": second(TaskURI(domain, agent, strings.ToUpper(testTask))),
		"no task":    second(TaskURI(domain, agent, "")),
		"braces":     second(TaskURI(domain, agent, "{"+testTask+"}")),
		"no domain":  second(TaskURI(spiffeid.TrustDomain{}, agent, testTask)),
		"no agent":   second(TaskURI(domain, spiffeid.ID{}, testTask)),
		"too long":   second(TaskURI(domain, long, testTask)),
	} {
		if !errors.Is(err, ErrNotTaskURI) {
			t.Errorf("%s: %v, want ErrNotTaskURI", name, err)
		}
	}
	fits := maxURI - len(testURI)
	if _, err := TaskURI(domain, spiffeid.RequireFromString(testAgent+strings.Repeat("x", fits)), testTask); err != nil {
		t.Errorf("a URI of exactly %d bytes: %v", maxURI, err)
	}
}

func second(_ spiffeid.ID, err error) error { return err }

// TestParseURIRefuses IDs that name no task.
func TestParseURIRefuses(t *testing.T) {
	for _, text := range []string{
		"spiffe://tasks.example.org", "spiffe://tasks.example.org/agent/example.org/x", "spiffe://tasks.example.org/agent/task/" + testTask,
		"spiffe://tasks.example.org/agent/EXAMPLE/x/task/" + testTask, "spiffe://tasks.example.org/x/example.org/task/" + testTask, testURI + "/x",
		"spiffe://tasks.example.org/agent/example.org/task/1",
	} {
		if agent, task, err := ParseURI(spiffeid.RequireFromString(text)); !errors.Is(err, ErrNotTaskURI) {
			t.Errorf("%s: read %s, %s, %v", text, agent, task, err)
		}
	}
}

// FuzzParseURI: what is read makes the same URI again.
func FuzzParseURI(f *testing.F) {
	f.Add(testURI)
	f.Add("spiffe://tasks.example.org/agent/example.org/task/" + testTask)
	f.Add("spiffe://t/agent/task/task/task/" + testTask)
	f.Fuzz(func(t *testing.T, text string) {
		id, err := spiffeid.FromString(text)
		if err != nil {
			return
		}
		agent, task, err := ParseURI(id)
		if err != nil {
			if !errors.Is(err, ErrNotTaskURI) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		if again, err := TaskURI(id.TrustDomain(), agent, task); err != nil || again != id {
			t.Fatalf("%s was read as %s, %s, which makes %s, %v", id, agent, task, again, err)
		}
	})
}
