package status

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"
	"unicode"

	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"
)

const (
	// checkTimeout bounds one check.
	checkTimeout = 3 * time.Second
	// cacheFor is for how long results are given again, so that strangers cannot make the broker ask its backends.
	cacheFor = time.Second
	// maxReason bounds a reason, in bytes.
	maxReason = 512
)

// Part is something that readiness depends on: the ledger, the audit log, the policy set, the source of the SVID, a
// backend.
type Part struct {
	Name string // "ledger", "backend vault/prod"
	// Backend is the instance's name where the part is a backend: "vault/prod". A backend that is down makes the
	// broker degraded, not unready: everything else goes on, and tasks of that backend have to be closed, too.
	Backend string
	// Check returns nil, or why the part does not work now. The text is public. It must return soon after ctx is done.
	Check func(ctx context.Context) error
}

// State is how ready the broker is.
type State string

// The states, from best to worst.
const (
	Ready    State = "ready"
	Degraded State = "degraded"  // a backend is down
	NotReady State = "not ready" // nothing can be issued
)

// Result is what was found of one part.
type Result struct {
	Name    string `json:"name"`
	Backend string `json:"backend,omitempty"`
	OK      bool   `json:"ok"`
	Reason  string `json:"reason,omitempty"`
}

// Report is what /readyz answers as JSON.
type Report struct {
	State State     `json:"state"`
	At    time.Time `json:"at"` // when the checks began
	Parts []Result  `json:"parts"`
}

// checks runs the checks of all parts and remembers the newest report for a moment.
type checks struct {
	parts func() []Part
	last  atomic.Pointer[Report]
	group singleflight.Group
}

// report returns a report that is at most cacheFor old.
func (c *checks) report(ctx context.Context) Report {
	if last := c.last.Load(); last != nil && time.Since(last.At) < cacheFor {
		return *last
	}
	_, _, _ = c.group.Do("", func() (any, error) {
		report := c.run(context.WithoutCancel(ctx)) // others wait for it, too
		c.last.Store(&report)
		return struct{}{}, nil
	})
	return *c.last.Load()
}

// run asks all parts at once.
func (c *checks) run(ctx context.Context) Report {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	parts := c.parts()
	report := Report{State: Ready, At: time.Now(), Parts: make([]Result, len(parts))}
	var asked sync.WaitGroup
	for i, part := range parts {
		asked.Go(func() { report.Parts[i] = part.result(part.Check(ctx)) })
	}
	asked.Wait()
	for _, r := range report.Parts {
		switch {
		case r.OK:
		case r.Backend == "":
			report.State = NotReady
		case report.State == Ready:
			report.State = Degraded
		}
	}
	return report
}

func (p Part) result(err error) Result {
	r := Result{Name: p.Name, Backend: p.Backend, OK: err == nil}
	if err != nil {
		r.Reason = printable(err.Error())
	}
	return r
}

// printable makes a text one line without control characters.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "") + "…"
	}
	return s
}

// ready answers 200 or 503, as text or, where the request accepts it or says ?format=json, as JSON.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	report := s.checks.report(r.Context())
	contentType, body := contentText, report.text()
	if strings.Contains(r.Header.Get("Accept"), contentJSON) || r.URL.Query().Get("format") == "json" {
		var err error
		if body, err = json.MarshalIndent(report, "", "  "); err != nil {
			s.log.Error("encode readiness", zap.Error(err))
			http.Error(w, "internal error", http.StatusInternalServerError)
			return
		}
		contentType, body = contentJSON, append(body, '\n')
	}
	w.Header().Set(headerContent, contentType)
	if report.State == NotReady {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	s.write(w, contentType, body)
}

// text returns the state and a line for each part.
func (r Report) text() []byte {
	var b bytes.Buffer
	fmt.Fprintln(&b, r.State)
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, p := range r.Parts {
		if p.OK {
			fmt.Fprintf(table, "  ok\t%s\n", p.Name)
		} else {
			fmt.Fprintf(table, "  FAIL\t%s: %s\n", p.Name, p.Reason)
		}
	}
	_ = table.Flush() // a buffer takes everything
	return b.Bytes()
}
