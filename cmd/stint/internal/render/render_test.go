package render_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stint-dev/stint/cmd/stint/internal/render"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

func TestClean(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain text":                     "plain text",
		"Grüße, 世界 — 🙂":                  "Grüße, 世界 — 🙂",
		"\x1b[31mred\x1b[0m":             "red",
		"\x1b[2J\x1b[1;1Hgone":           "gone",
		"\u009b31mred":                   "red",
		"\x1b]0;title\x07after":          "]0;titleafter",
		"\x1bPdcs\x1b\\after":            "Pdcs\\after",
		"two\nlines\r\ttab":              "two lines  tab",
		"bell\a back\b null\x00 del\x7f": "bell back null del",
		"user\u202etxt.exe":              "usertxt.exe",
		"\u2066isolated\u2069\u200b":     "isolated",
		"line\u2028sep\u2029":            "line sep ",
		"tag\U000e0041\ufeff":            "tag",
		"\xff\xfe":                       "\ufffd\ufffd",
		"\x1b[31":                        "",
		"\x1b[3\x1b[1mx":                 "x",
		"\x1b":                           "",
		"\x1b[\x07m":                     "m",
	} {
		if got := render.Clean(in); got != want {
			t.Errorf("Clean(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzClean(f *testing.F) {
	for _, seed := range []string{"", "a", "\x1b[31mred", "\u009b\u202e\x00", "\xff", "\x1b\x1b[["} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, in string) {
		out := render.Clean(in)
		if !utf8.ValidString(out) {
			t.Fatalf("Clean(%q) is not UTF-8", in)
		}
		for _, r := range out {
			if unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
				t.Fatalf("Clean(%q) holds %U", in, r)
			}
		}
		if render.Clean(out) != out {
			t.Fatalf("Clean(%q) is not clean", in)
		}
	})
}

func TestTableCleansAndAligns(t *testing.T) {
	t.Parallel()
	table := render.NewTable("A", "LONGER")
	table.Row("über", "\x1b[31mx\ny", "")
	table.Row("b")
	var b bytes.Buffer
	if err := table.Write(&b); err != nil {
		t.Fatal(err)
	}
	if want := "A     LONGER\nüber  x y\nb\n"; b.String() != want {
		t.Errorf("table %q, want %q", b.String(), want)
	}
}

func TestWriteKeepsDataAndHarmsNoTerminal(t *testing.T) {
	t.Parallel()
	const hostile = "a\x1b[2J\u202e\u009b\U000e0041\u2028z"
	task := &stintv1.Task{
		Name: "tasks/1", Description: hostile, AuditIndex: 7, NotAfter: timestamppb.New(time.Date(2026, 11, 23, 10, 28, 0, 0, time.UTC)),
		IdleTimeout: durationpb.New(time.Minute), State: stintv1.TaskState_TASK_STATE_ACTIVE,
	}
	var b bytes.Buffer
	if err := render.Write(&b, render.FormatJSON, task); err != nil {
		t.Fatal(err)
	}
	for _, r := range b.String() {
		if r != '\n' && unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl) {
			t.Errorf("JSON holds %U", r)
		}
	}
	var doc map[string]any
	if err := json.Unmarshal(b.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"description": hostile, "auditIndex": "7", "notAfter": "2026-11-23T10:28:00Z", "idleTimeout": "60s", "state": "TASK_STATE_ACTIVE",
	} {
		if doc[key] != want {
			t.Errorf("%s is %q, want %q", key, doc[key], want)
		}
	}
	b.Reset()
	if err := render.Write(&b, render.FormatYAML, task); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(b.String(), "name: tasks/1\n") || strings.ContainsAny(b.String(), "\x1b\u202e\u009b") {
		t.Errorf("YAML %q", b.String())
	}
}

func TestDurations(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "0s", 84 * time.Millisecond: "84 ms", time.Second: "1s", 8 * time.Hour: "8h", 10 * time.Minute: "10m",
		13*time.Minute + 40*time.Second: "13m40s", time.Hour + time.Second: "1h0m1s", -90 * time.Second: "-1m30s", 1600 * time.Millisecond: "2s",
	} {
		if got := render.Short(d); got != want {
			t.Errorf("Short(%v) = %q, want %q", d, got, want)
		}
	}
	now := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	at := timestamppb.New(now.Add(3*time.Minute + 42*time.Second))
	if got := render.Until(at, now); got != "3m42s" {
		t.Errorf("Until %q", got)
	}
	if got := render.Until(at, now.Add(time.Hour)); got != "over" {
		t.Errorf("Until %q", got)
	}
	if got := render.Clock(at, now); got != "10:03:42Z" {
		t.Errorf("Clock %q", got)
	}
	if got := render.Clock(at, now.Add(48*time.Hour)); got != "2026-11-23T10:03:42Z" {
		t.Errorf("Clock %q", got)
	}
	if render.Until(nil, now) != "-" || render.Clock(nil, now) != "-" || render.Duration(nil) != "-" {
		t.Error("nothing is not a dash")
	}
}
