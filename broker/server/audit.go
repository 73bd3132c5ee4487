package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/grpc"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

const (
	// defaultRecords is the size of a page of records where none is asked for.
	defaultRecords = 100
	// streamRecords is how many records a stream reads at a time.
	streamRecords = 500
	// ledgerRetry is when to try again where the ledger cannot be read.
	ledgerRetry = 5 * time.Second
)

// auditService is stint.v1.AuditService. It only reads.
type auditService struct {
	stintv1.UnimplementedAuditServiceServer

	server *Server
}

// view reads a snapshot of the ledger and turns its errors into what the caller sees.
func (s *auditService) view(ctx context.Context, fn func(ledger.Reader) error) error {
	err := s.server.cfg.Ledger.View(ctx, fn)
	switch {
	case errors.Is(err, audit.ErrNoRecords), errors.Is(err, ledger.ErrNotFound):
		return fault.Wrap(fault.NotFound, "there are no records of such a task, or it is not yours", err)
	case errors.Is(err, ledger.ErrUnavailable), errors.Is(err, ledger.ErrClosed):
		return fault.Wrap(fault.LedgerUnavailable, "the ledger cannot be read now", err).Retry(ledgerRetry)
	}
	return err
}

// ListRecords returns records in the order of the log.
func (s *auditService) ListRecords(ctx context.Context, req *stintv1.ListRecordsRequest) (*stintv1.ListRecordsResponse, error) {
	of := ""
	if req.GetTask() != "" {
		t, err := s.task(ctx, req.GetTask())
		if err != nil {
			return nil, err
		}
		of = t.ID.String()
	}
	size := defaultRecords
	if req.GetPageSize() > 0 {
		size = int(req.GetPageSize())
	}
	entries, err := s.entries(ctx, req.GetStart(), size+1, of)
	if err != nil {
		return nil, err
	}
	out := &stintv1.ListRecordsResponse{}
	if len(entries) > size {
		out.NextStart = entries[size].Index
		entries = entries[:size]
	}
	for _, e := range entries {
		out.Records = append(out.Records, recordOf(e))
	}
	return out, nil
}

// StreamRecords sends records from an index on, and goes on as they come.
func (s *auditService) StreamRecords(
	req *stintv1.StreamRecordsRequest, stream grpc.ServerStreamingServer[stintv1.AuditRecord],
) error {
	ctx := stream.Context()
	for next := req.GetStart(); ; {
		grown := s.server.cfg.Ledger.Grown()
		entries, err := s.entries(ctx, next, streamRecords, "")
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := stream.Send(recordOf(e)); err != nil {
				return err
			}
			next = e.Index + 1
		}
		if len(entries) == streamRecords {
			continue
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// GetCheckpoint returns the newest signed checkpoint.
func (s *auditService) GetCheckpoint(context.Context, *stintv1.GetCheckpointRequest) (*stintv1.Checkpoint, error) {
	return s.checkpoint(s.server.cfg.Ledger.Head()), nil
}

// GetInclusionProof proves that a record is in the log of a given size.
func (s *auditService) GetInclusionProof(ctx context.Context, req *stintv1.GetInclusionProofRequest) (*stintv1.Proof, error) {
	return s.prove(ctx, req.GetSize(), "index", func(r audit.Reader, size int64) ([]tlog.Hash, error) {
		return audit.Inclusion(r, req.GetIndex(), size)
	})
}

// GetConsistencyProof proves that one log is a prefix of another.
func (s *auditService) GetConsistencyProof(ctx context.Context, req *stintv1.GetConsistencyProofRequest) (*stintv1.Proof, error) {
	return s.prove(ctx, req.GetNewSize(), "old_size", func(r audit.Reader, size int64) ([]tlog.Hash, error) {
		return audit.Consistency(r, req.GetOldSize(), size)
	})
}

// prove makes a proof for a size of the log; zero is its newest. There is a checkpoint for the newest size only: who asks
// about an earlier one has its checkpoint.
func (s *auditService) prove(
	ctx context.Context, size int64, field string, fn func(r audit.Reader, size int64) ([]tlog.Hash, error),
) (*stintv1.Proof, error) {
	out := &stintv1.Proof{}
	err := s.view(ctx, func(r ledger.Reader) error {
		head, err := r.Head()
		if err != nil {
			return err
		}
		if size == 0 {
			size = head.Size
		}
		hashes, err := fn(r, size)
		if errors.Is(err, audit.ErrRange) {
			return invalid(fault.Field{Name: field, Problem: fmt.Sprintf("is not in a log of %d records; the newest has %d", size, head.Size)})
		}
		if err != nil {
			return err
		}
		for _, h := range hashes {
			out.Hashes = append(out.Hashes, h[:])
		}
		if size == head.Size {
			out.Checkpoint = s.checkpoint(head)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// GetReceipt returns everything about one task with its proofs.
func (s *auditService) GetReceipt(ctx context.Context, req *stintv1.GetReceiptRequest) (*stintv1.Receipt, error) {
	t, err := s.task(ctx, req.GetTask())
	if err != nil {
		return nil, err
	}
	out := &stintv1.Receipt{}
	if err := s.view(ctx, func(r ledger.Reader) error {
		var err error
		out.Json, err = audit.BuildReceipt(r, t.ID.String())
		return err
	}); err != nil {
		return nil, err
	}
	return out, nil
}

// task finds one of the caller's tasks; an administrator's are everybody's.
func (s *auditService) task(ctx context.Context, name string) (task.Task, error) {
	ref, err := broker.ParseTaskRef(name)
	if err != nil {
		return task.Task{}, err
	}
	caller := callerOf(ctx)
	if caller.Admin != "" {
		return s.server.cfg.Broker.AnyTask(ctx, ref)
	}
	return s.server.cfg.Broker.Task(ctx, caller, ref)
}

func (s *auditService) entries(ctx context.Context, start int64, limit int, of string) ([]audit.Entry, error) {
	var entries []audit.Entry
	err := s.view(ctx, func(r ledger.Reader) error {
		var err error
		entries, err = r.Entries(start, limit, of)
		return err
	})
	return entries, err
}

func (s *auditService) checkpoint(head audit.Head) *stintv1.Checkpoint {
	return &stintv1.Checkpoint{Note: string(head.Checkpoint), Size: head.Size, VerifierKey: s.server.cfg.VerifierKey}
}

// recordOf writes an entry. Its time is read from the record, and unset where that cannot be read.
func recordOf(e audit.Entry) *stintv1.AuditRecord {
	out := &stintv1.AuditRecord{Index: e.Index, Json: e.JSON, Event: string(e.Event)}
	var rec struct {
		Time time.Time `json:"time"`
	}
	if err := json.Unmarshal(e.JSON, &rec); err == nil {
		out.Time = timeOf(rec.Time)
	}
	return out
}
