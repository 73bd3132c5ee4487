package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/cmd/stint/internal/render"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

const (
	publicMode  = 0o644
	maxReceipt  = 64 << 20
	defaultPage = 100

	openReceipt = "the log may hold records after the last one here; without the closing record nothing shows whether the task has ended"
)

func (a *app) audit() *cobra.Command {
	cmd := &cobra.Command{Use: "audit", Short: "Read and verify the audit log", Args: cobra.NoArgs, RunE: needsCommand}
	cmd.AddCommand(a.auditList(), a.auditReceipt(), a.auditVerify(), a.auditPubkey())
	return cmd
}

// recordJSON is one record as -o json prints it.
type recordJSON struct {
	Index  int64           `json:"index"`
	Time   time.Time       `json:"time"`
	Event  string          `json:"event"`
	Record json.RawMessage `json:"record"`
}

func newRecord(r *stintv1.AuditRecord) recordJSON {
	record := json.RawMessage(r.GetJson())
	if !json.Valid(record) {
		record = json.RawMessage(strconv.Quote("not JSON"))
	}
	return recordJSON{Index: r.GetIndex(), Time: r.GetTime().AsTime(), Event: r.GetEvent(), Record: record}
}

func (a *app) auditList() *cobra.Command {
	var start int64
	var limit int32
	var task string
	var follow bool
	cmd := &cobra.Command{
		Use: "list", Short: "List records, for auditors", Args: cobra.NoArgs,
		RunE: a.with(func(ctx context.Context, s session, _ []string) error {
			if follow {
				return a.acrossReconnects(ctx, func() error { return s.streamRecords(ctx, &start) })
			}
			req := &stintv1.ListRecordsRequest{Start: start, PageSize: limit}
			if task != "" {
				req.Task = taskName(task)
			}
			ctx, cancel := a.call(ctx)
			defer cancel()
			answer, err := s.Audit().ListRecords(ctx, req)
			if err != nil {
				return err
			}
			page := struct {
				Records   []recordJSON `json:"records"`
				NextStart int64        `json:"nextStart"`
			}{Records: make([]recordJSON, 0, len(answer.GetRecords())), NextStart: answer.GetNextStart()}
			for _, r := range answer.GetRecords() {
				page.Records = append(page.Records, newRecord(r))
			}
			return a.show(page, func(w io.Writer) error {
				t := render.NewTable("INDEX", "TIME", "EVENT", "RECORD")
				for _, r := range page.Records {
					t.Row(strconv.FormatInt(r.Index, 10), r.Time.Format(time.RFC3339), r.Event, string(r.Record))
				}
				if page.NextStart > 0 {
					a.sayf("note:   more with --start %d", page.NextStart)
				}
				return t.Write(w)
			})
		}),
	}
	cmd.Flags().Int64Var(&start, "start", 0, "the first index")
	cmd.Flags().Int32Var(&limit, "limit", defaultPage, "at most so many, up to 1000")
	cmd.Flags().StringVar(&task, "task", "", "only those of this task")
	cmd.Flags().BoolVar(&follow, "follow", false, "go on as they come, one JSON object a line")
	cmd.MarkFlagsMutuallyExclusive("follow", "task")
	return cmd
}

// streamRecords writes records as they come, from an index on, which it moves on with each.
func (s session) streamRecords(ctx context.Context, next *int64) error {
	stream, err := s.Audit().StreamRecords(ctx, &stintv1.StreamRecordsRequest{Start: *next})
	if err != nil {
		return err
	}
	for {
		record, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := render.WriteLine(s.app.stdout, newRecord(record)); err != nil {
			return err
		}
		*next = record.GetIndex() + 1
	}
}

func (a *app) auditReceipt() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "receipt TASK", Short: "Fetch everything about a task with its proofs", Args: cobra.ExactArgs(1),
		RunE: a.with(func(ctx context.Context, s session, args []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			answer, err := s.Audit().GetReceipt(ctx, &stintv1.GetReceiptRequest{Task: taskName(args[0])})
			if err != nil {
				return err
			}
			if file == "" || file == standardInput {
				_, err = a.stdout.Write(answer.GetJson())
				return err
			}
			if err := writeWhole(file, answer.GetJson()); err != nil {
				return err
			}
			a.sayf("wrote %s; stint audit verify %s --pubkey KEY", file, file)
			return nil
		}),
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "write to this file instead of standard output")
	return cmd
}

// writeWhole replaces a file as a whole.
func writeWhole(name string, content []byte) error {
	fresh, err := os.CreateTemp(filepath.Dir(name), ".stint-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	_, err = fresh.Write(content)
	err = errors.Join(err, fresh.Chmod(publicMode), fresh.Close())
	if err == nil {
		err = os.Rename(fresh.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, errors.Join(err, os.Remove(fresh.Name())))
	}
	return nil
}

func (a *app) auditPubkey() *cobra.Command {
	return &cobra.Command{
		Use: "pubkey", Short: "Print the key that receipts are verified with; compare it with one you got elsewhere", Args: cobra.NoArgs,
		RunE: a.with(func(ctx context.Context, s session, _ []string) error {
			ctx, cancel := a.call(ctx)
			defer cancel()
			answer, err := s.Audit().GetCheckpoint(ctx, &stintv1.GetCheckpointRequest{})
			if err != nil {
				return err
			}
			return a.show(answer, func(w io.Writer) error {
				_, err := fmt.Fprintln(w, render.Clean(answer.GetVerifierKey()))
				return err
			})
		}),
	}
}

func (a *app) auditVerify() *cobra.Command {
	var key string
	cmd := &cobra.Command{
		Use: "verify FILE --pubkey KEY|@FILE", Short: "Verify a receipt with nothing but a public key", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			doc, err := readLimited(args[0], maxReceipt)
			if err != nil {
				return err
			}
			if name, ok := strings.CutPrefix(key, "@"); ok {
				raw, readErr := readLimited(name, maxDocument)
				if readErr != nil {
					return readErr
				}
				key = string(raw)
			}
			report, err := audit.VerifyReceipt(doc, strings.TrimSpace(key))
			if err != nil && !errors.Is(err, audit.ErrReceipt) {
				return usage("%v", err)
			}
			if shown := a.showReport(&report, err == nil); shown != nil {
				return shown
			}
			return err
		},
	}
	cmd.Flags().StringVar(&key, "pubkey", "", "the log's public key as stint audit pubkey prints it, or @FILE that holds it")
	_ = cmd.MarkFlagRequired("pubkey") // it fails for unknown flags only
	return cmd
}

func readLimited(name string, most int64) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, usage("%v", err)
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, most+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(len(content)) > most {
		return nil, usage("%s is too long", name)
	}
	return content, nil
}

// showReport writes what a receipt says; of one that does not verify, only as data.
//
//nolint:revive // whether it verified is not this function's to find out
func (a *app) showReport(r *audit.Report, good bool) error {
	doc := struct {
		Verified bool `json:"verified"`
		*audit.Report
	}{good, r}
	if _, data := a.format(); !data && !good {
		return nil
	}
	if _, data := a.format(); data && good && !r.Closed {
		a.sayf("note:   %s", openReceipt)
	}
	return a.show(doc, func(w io.Writer) error {
		t := render.NewTable()
		t.Row("Verified", fmt.Sprintf("%s of %s, in the log of size %d", plural(r.Records, "record"), r.Origin, r.Size))
		t.Row("Task", join(r.TaskName, r.Task, labelled("purpose", r.Purpose)))
		t.Row("Agent", join(r.Agent, labelled("owner", r.Owner), labelled("sponsor", r.Sponsor)))
		end := "no end among these records"
		if r.Closed {
			end = "closed (" + strings.ToLower(r.CloseReason) + ") " + r.ClosedAt.UTC().Format(time.RFC3339)
		}
		t.Row("Declared", r.DeclaredAt.UTC().Format(time.RFC3339)+", "+end)
		for _, l := range r.Leases {
			t.Row("Lease", join(l.Lease, l.Role, l.Backend, l.Ref, reportedEnd(l)))
		}
		t.Row("Open", plural(r.Open(), "lease")+" without a proven end")
		if !r.Closed {
			t.Row("Note", openReceipt)
		}
		for _, e := range r.Restores {
			t.Row("Restored", fmt.Sprintf("the log went on from an older copy at record %d (epoch %d), while the task was open: "+
				"records of it from before may be lost", e.Start, e.Number))
		}
		return t.Write(w)
	})
}

func reportedEnd(l audit.LeaseReport) string {
	switch {
	case !l.Ended:
		return "NOT ENDED"
	case l.Proof == nil:
		return "ended"
	}
	return "ended, " + fmt.Sprint(l.Proof.Kind)
}
