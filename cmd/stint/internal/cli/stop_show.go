package cli

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/stint-dev/stint/cmd/stint/internal/render"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// barWidth is how many characters stand for all leases.
const barWidth = 24

// bar shows how a stop goes on: one line that is written over on a terminal, else a line now and then.
type bar struct {
	app   *app
	drawn bool // on a terminal
	live  bool
	last  time.Time // of a plain line
}

func (a *app) newBar() *bar {
	return &bar{app: a, live: isTerminal(a.stderr) && os.Getenv("TERM") != "dumb", last: time.Now()}
}

// isTerminal says whether a stream is one that a person looks at or types on.
func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// show draws one report.
func (b *bar) show(p *stintv1.StopProgress) {
	switch {
	case b.live:
		_, _ = fmt.Fprintf(b.app.stderr, "\r\x1b[K%s", drawBar(p)) // nothing can be done where it fails
		b.drawn = true
	case time.Since(b.last) >= progressAfter && !p.GetDone():
		b.last = time.Now()
		b.app.sayf("%s", countLine(p))
	}
}

// close leaves the line.
func (b *bar) close() {
	if b.drawn {
		_, _ = fmt.Fprint(b.app.stderr, "\r\x1b[K") // as above
	}
}

// drawBar writes "[############            ] 20 of 40 leases ended".
func drawBar(p *stintv1.StopProgress) string {
	full := 0
	if n := p.GetLeases(); n > 0 {
		full = int(int64(barWidth) * int64(ended(p)) / int64(n))
	} else if p.GetChosen() {
		full = barWidth
	}
	return "[" + strings.Repeat("#", full) + strings.Repeat(" ", barWidth-full) + "] " + countLine(p)
}

// ended counts the leases whose end is proven. What was disclosed has none.
func ended(p *stintv1.StopProgress) int32 {
	return p.GetLeases() - p.GetOpen() - p.GetByProof()[disclosed]
}

// countLine writes "20 of 40 leases ended, 1 overdue".
func countLine(p *stintv1.StopProgress) string {
	line := fmt.Sprintf("%d of %s ended", ended(p), plural(int(p.GetLeases()), "lease"))
	if !p.GetChosen() {
		line = "closing: " + plural(int(p.GetTasks()), "task") + " so far, " + line
	}
	if n := p.GetStuck(); n > 0 {
		line += fmt.Sprintf(", %d overdue", n)
	}
	return line
}

// stopTable writes what a stop came to.
func stopTable(w io.Writer, of stopTarget, f stopFlags, p *stintv1.StopProgress, now time.Time) error {
	t := render.NewTable()
	if f.dryRun {
		t.Row("Would stop", of.String())
	} else {
		t.Row("Stopped", of.String())
	}
	if a := p.GetAgent(); a != nil {
		t.Row("Suspended", "since "+render.Clock(a.GetSince(), now)+" by "+a.GetBy())
	}
	t.Row("Tasks", strconv.Itoa(int(p.GetTasks())))
	t.Row("Leases", strconv.Itoa(int(p.GetLeases())))
	if n := ended(p); n > 0 {
		t.Row("Ended", fmt.Sprintf("%d: %s", n, strings.Join(ends(&stintv1.TeardownSummary{ByProof: p.GetByProof()}), ", ")))
	}
	if n := p.GetOpen(); n > 0 {
		t.Row("Open", openLine(p, now))
	}
	if n := p.GetByProof()[disclosed]; n > 0 {
		t.Row("Not ended", fmt.Sprintf("%d disclosed: the broker cannot end them, they go on working", n))
	}
	if n := p.GetUnseen(); n > 0 {
		t.Row("Not seen", fmt.Sprintf("%d: gone, or never heard of, at the backend; nobody saw the end where it is used", n))
	}
	if p.GetUsableUntil() != nil && p.GetOpen() == 0 {
		t.Row("Usable", render.Worst(p.GetUsableUntil(), now))
	}
	if p.GetUncheckedUntil() != nil {
		t.Row("Without CRL", "accepted until "+render.Clock(p.GetUncheckedUntil(), now))
	}
	if f.dryRun {
		t.Row("Dry run", "nothing was changed")
	}
	return t.Write(w)
}

// openLine writes "2, 1 overdue, usable until 10:12:00Z at worst".
func openLine(p *stintv1.StopProgress, now time.Time) string {
	line := strconv.Itoa(int(p.GetOpen()))
	if n := p.GetStuck(); n > 0 {
		line += fmt.Sprintf(", %d overdue", n)
	}
	switch until := p.GetUsableUntil(); {
	case until != nil:
		line += ", usable " + render.Worst(until, now)
	case p.GetOpen() > p.GetUnbounded(): // what should have ended by itself, and is not proven to
		line += ", usable until proven ended"
	}
	if n := p.GetUnbounded(); n > 0 {
		line += fmt.Sprintf(", %d without an end of its own", n)
	}
	return line
}
