package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stint-dev/stint/broker/failpoint"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

const (
	// stepsATime is how many steps stintd is killed or frozen at, one after the other, and stepWait how long it may take to
	// come to one.
	stepsATime = 6
	stepWait   = 6 * time.Second
	// awake is how long stintd goes on after it was frozen, so that what comes late does.
	awake = time.Second
	// longerThanClaim is longer than a worker may have a lease for itself.
	longerThanClaim = 65 * time.Second
	// unluckyID is the agent that is suspended now and then.
	unluckyID = "spiffe://" + trustDomain + "/agent/s0"
)

// steps are those of issuing and ending at which stintd is stopped. Its fail points are of a build of their own.
type steps struct {
	program string
	rng     *rand.Rand
	deck    []string       // those that come next
	tried   map[string]int // by the step
	hit     map[string]int
}

// newSteps builds the tests, and with them stintd, with fail points.
func newSteps(tb testing.TB, seed uint64) *steps {
	tb.Helper()
	name := filepath.Join(tb.TempDir(), "failpoints.test")
	args := []string{"test", "-c", "-tags", "failpoints", "-o", name}
	if instrumented {
		args = append(args, "-race")
	}
	if out, err := exec.CommandContext(tb.Context(), "go", append(args, ".")...).CombinedOutput(); err != nil {
		tb.Fatalf("build: %v\n%s", err, out)
	}
	return &steps{program: name, rng: rand.New(rand.NewPCG(seed, 2000)), tried: map[string]int{}, hit: map[string]int{}}
}

// reachable are the steps that a soak can come to: no agent in it has more tasks than a suspension closes at once.
func reachable() []string {
	return slices.DeleteFunc(failpoint.Steps(), func(step string) bool { return step == "suspension.page" })
}

// next returns a step: every one has its turn before one comes again.
func (p *steps) next() string {
	if len(p.deck) == 0 {
		p.deck = reachable()
		p.rng.Shuffle(len(p.deck), func(i, j int) { p.deck[i], p.deck[j] = p.deck[j], p.deck[i] })
	}
	step := p.deck[0]
	p.deck = p.deck[1:]
	return step
}

// count is at which hit of a step stintd is stopped: what happens all the time, not always at the first.
func (p *steps) count(step string) int {
	if kind, _, _ := strings.Cut(step, "."); kind == "issue" || kind == "teardown" || kind == "declare" || kind == "close" {
		return 1 + p.rng.IntN(4)
	}
	return 1
}

// summary says how often it was stopped where, and where it never was.
func (p *steps) summary() string {
	var never []string
	for _, step := range reachable() {
		if p.hit[step] == 0 {
			never = append(never, fmt.Sprintf("%s (tried %d times)", step, p.tried[step]))
		}
	}
	times := 0
	for n := range maps.Values(p.hit) {
		times += n
	}
	return fmt.Sprintf("stintd was killed or frozen %d times, at %d of %d steps: %v; never at %s",
		times, len(p.hit), len(reachable()), p.hit, strings.Join(never, ", "))
}

func (s *soak) stepFaults() []mishap {
	faults := []mishap{
		{name: "stintd killed at a step", do: s.atSteps(s.killedAt)},
		{name: "stintd frozen at a step", do: s.atSteps(s.frozenAt)},
	}
	if s.long {
		faults = append(faults, mishap{name: "stintd frozen at a step for longer than a claim", do: s.frozenLong, rest: 5 * time.Minute})
	}
	return faults
}

// atSteps lets stintd be stopped at one step after the other, each time in the start that goes on with what the one before
// left, and then go on without fail points.
func (s *soak) atSteps(stopped func(tb testing.TB, step string, lasting time.Duration)) func(testing.TB, time.Duration) {
	return func(tb testing.TB, lasting time.Duration) {
		tb.Helper()
		var at []string
		for range stepsATime {
			step := s.steps.next()
			stopped(tb, step, lasting)
			at = append(at, step)
		}
		s.fromSteps(tb, at...)
	}
}

// killedAt lets stintd kill itself at a step, if it comes to it.
func (s *soak) killedAt(tb testing.TB, step string, _ time.Duration) {
	tb.Helper()
	s.toStep(tb, step+":kill", func() bool { return s.daemon.ended() })
	if s.daemon.ended() {
		if status, ok := s.daemon.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
			tb.Errorf("stintd, to be killed at %s, ended by itself: %s; it said:\n%s", step, s.daemon.cmd.ProcessState, tail(s.daemon.log(tb)))
		}
	}
}

// frozenAt lets stintd freeze at a step, if it comes to it, and go on later.
func (s *soak) frozenAt(tb testing.TB, step string, lasting time.Duration) {
	tb.Helper()
	if !s.toStep(tb, step+":stop", func() bool { return frozen(s.daemon.cmd.Process.Pid) }) {
		return
	}
	<-time.After(lasting)
	s.daemon.signal(tb, syscall.SIGCONT)
	<-time.After(awake)
}

// frozenLong freezes it in the middle of ending a lease until its claim is over.
func (s *soak) frozenLong(tb testing.TB, _ time.Duration) {
	tb.Helper()
	step := []string{"teardown.claimed", "teardown.revoked"}[s.steps.rng.IntN(2)]
	s.frozenAt(tb, step, longerThanClaim)
	s.fromSteps(tb, step)
}

// toStep starts stintd with a fail point, and waits until it has stopped there or it seems that it will not.
func (s *soak) toStep(tb testing.TB, point string, stopped func() bool) (came bool) {
	tb.Helper()
	s.daemon.kill(tb)
	step, _, _ := strings.Cut(point, ":")
	s.leadTo(tb, step)
	env := append(slices.Clone(s.env), fmt.Sprintf("STINT_FAILPOINT=%s:%d", point, s.steps.count(step)))
	s.daemon = program{s.steps.program, env}.launch(tb, s.dir, "serve", "--config", s.file("stint.hcl"))
	s.steps.tried[step]++
	ctx, cancel := context.WithTimeout(tb.Context(), stepWait)
	defer cancel()
	admin, asked := s.admin(tb).Admin(), make(chan struct{})
	go func() { defer close(asked); askFor(ctx, admin, step) }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !stopped() && ctx.Err() == nil {
		<-tick.C
	}
	if came = stopped(); came {
		s.steps.hit[step]++
	}
	cancel()
	<-asked
	return came
}

// leadTo sees to it that the next start has something to do at a step that agents alone do not lead to.
func (s *soak) leadTo(tb testing.TB, step string) {
	tb.Helper()
	s.resources(tb, s.roles)
	switch kind, _, _ := strings.Cut(step, "."); kind {
	case "role":
		s.resources(tb, s.fewer)
	case "stray": // what was revoked is to be ended again
		s.note(func() { s.faults["embedded CRL missing"]++ })
		if err := os.Remove(s.crlFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
			tb.Fatal(err)
		}
	}
}

// askFor does what an operator does to come to a step, once stintd answers.
func askFor(ctx context.Context, admin stintv1.AdminServiceClient, step string) {
	var ask func() error
	switch kind, _, _ := strings.Cut(step, "."); kind {
	case "stop":
		ask = func() error {
			stream, err := admin.Stop(ctx, &stintv1.StopRequest{Target: &stintv1.StopRequest_Agent{Agent: unluckyID}, Suspend: true})
			for err == nil {
				_, err = stream.Recv()
			}
			return err
		}
	case "stray", "inventory":
		ask = func() error {
			_, err := admin.Reconcile(ctx, &stintv1.ReconcileRequest{RevokeUnknown: true})
			return err
		}
	default:
		return
	}
	for ctx.Err() == nil {
		if err := ask(); err == nil || errors.Is(err, io.EOF) {
			return
		}
		<-time.After(100 * time.Millisecond) // it is not there yet
	}
}

// fromSteps starts stintd without fail points, and takes back what led to the steps.
func (s *soak) fromSteps(tb testing.TB, at ...string) {
	tb.Helper()
	s.resources(tb, s.roles)
	s.killStintd(tb, 0)
	among := func(kind string) bool {
		return slices.ContainsFunc(at, func(step string) bool { return strings.HasPrefix(step, kind+".") })
	}
	if among("stop") {
		eventually(tb, time.Minute, func() error {
			_, err := s.admin(tb).Admin().ResumeAgent(tb.Context(), &stintv1.ResumeAgentRequest{Agent: unluckyID})
			if agent.ReasonOf(err) == stintv1.Reason_REASON_NOT_FOUND { // it was not suspended yet
				err = nil
			}
			return err
		})
	}
	if among("stray") {
		s.revokesAgain(tb)
	}
}

// frozen reports whether a process is stopped by a signal. Where the system does not say, none is.
func frozen(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return strings.HasPrefix(rest, "T")
}
