package agenttest

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"sync"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

const origin = "stint.example.org/audit"

// log is a Merkle log in memory.
type log struct {
	key    string
	signer note.Signer

	mu      sync.Mutex // guards what follows
	records []string
	hashes  []tlog.Hash
	epochs  string // the extension lines of checkpoints
	epoch   int
}

func newLog(tb testing.TB) *log {
	tb.Helper()
	private, public, err := note.GenerateKey(rand.Reader, origin)
	if err != nil {
		tb.Fatal(err)
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		tb.Fatal(err)
	}
	return &log{key: public, signer: signer}
}

// ReadHashes implements [tlog.HashReader].
func (l *log) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, 0, len(indexes))
	for _, i := range indexes {
		out = append(out, l.hashes[i])
	}
	return out, nil
}

// append adds a record and returns its index and the checkpoint over it.
func (l *log) append(record string) (int64, string) {
	l.mu.Lock()
	index := int64(len(l.records))
	hashes, err := tlog.StoredHashes(index, []byte(record), l)
	if err == nil {
		l.records = append(l.records, record)
		l.hashes = append(l.hashes, hashes...)
	}
	l.mu.Unlock()
	return index, l.checkpoint()
}

// checkpoint signs the head.
func (l *log) checkpoint() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	size := int64(len(l.records))
	root, err := tlog.TreeHash(size, l)
	if err != nil {
		return err.Error()
	}
	signed, err := note.Sign(&note.Note{
		Text: fmt.Sprintf("%s\n%d\n%s\n%s", origin, size, base64.StdEncoding.EncodeToString(root[:]), l.epochs),
	}, l.signer)
	if err != nil {
		return err.Error()
	}
	return string(signed)
}

// Record returns a record of the audit log.
func (b *Broker) Record(index int) string {
	b.log.mu.Lock()
	defer b.log.mu.Unlock()
	return b.log.records[index]
}

// LogSize returns how many records the audit log has.
func (b *Broker) LogSize() int { return int(b.log.size()) }

// CutLog takes the log back to its first records, as an older copy that nobody has confirmed.
func (b *Broker) CutLog(size int) {
	b.log.mu.Lock()
	kept := b.log.records[:size]
	b.log.records, b.log.hashes = nil, nil
	b.log.mu.Unlock()
	for _, record := range kept {
		b.log.append(record)
	}
}

// RestoreLog takes the log back to its first records and begins a new epoch there, as a confirmed restore does.
func (b *Broker) RestoreLog(size int) {
	b.CutLog(size)
	b.log.mu.Lock()
	b.log.epoch++
	b.log.epochs += fmt.Sprintf("epoch %d %d\n", b.log.epoch+1, size)
	b.log.mu.Unlock()
	b.log.append(`{"event":"log.restored"}`)
}

// Rewrite replaces the first record of the audit log and signs anew, as an insider could.
func (b *Broker) Rewrite(first string) {
	b.log.mu.Lock()
	records := b.log.records
	b.log.records, b.log.hashes = nil, nil
	b.log.mu.Unlock()
	for i, record := range records {
		if i == 0 {
			record = first
		}
		b.log.append(record)
	}
}

type auditService struct {
	stintv1.UnimplementedAuditServiceServer

	b *Broker
}

func (s *auditService) GetCheckpoint(context.Context, *stintv1.GetCheckpointRequest) (*stintv1.Checkpoint, error) {
	return &stintv1.Checkpoint{Note: s.b.log.checkpoint(), Size: s.b.log.size(), VerifierKey: s.b.LogKey}, nil
}

func (l *log) size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(len(l.records))
}

func (s *auditService) GetConsistencyProof(_ context.Context, req *stintv1.GetConsistencyProofRequest) (*stintv1.Proof, error) {
	s.b.log.mu.Lock()
	defer s.b.log.mu.Unlock()
	if have := int64(len(s.b.log.records)); req.GetNewSize() > have {
		return nil, invalid("old_size", fmt.Sprintf("is not in a log of %d records", have))
	}
	proof, err := tlog.ProveTree(req.GetNewSize(), req.GetOldSize(), s.b.log)
	if err != nil {
		return nil, invalid("old_size", err.Error())
	}
	answer := &stintv1.Proof{}
	for _, h := range proof {
		answer.Hashes = append(answer.Hashes, h[:])
	}
	return answer, nil
}

func (s *auditService) ListRecords(ctx context.Context, req *stintv1.ListRecordsRequest) (*stintv1.ListRecordsResponse, error) {
	if err := admin(ctx); err != nil {
		return nil, err
	}
	return &stintv1.ListRecordsResponse{Records: s.b.log.from(req.GetStart())}, nil
}

func (l *log) from(start int64) []*stintv1.AuditRecord {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []*stintv1.AuditRecord
	for i := start; i < int64(len(l.records)); i++ {
		out = append(out, &stintv1.AuditRecord{Index: i, Json: []byte(l.records[i]), Time: timestamppb.Now(), Event: "test.event"})
	}
	return out
}

func (s *auditService) StreamRecords(req *stintv1.StreamRecordsRequest, stream grpc.ServerStreamingServer[stintv1.AuditRecord]) error {
	s.b.mu.Lock()
	recycle := s.b.recycle
	s.b.recycle = false
	s.b.mu.Unlock()
	for _, record := range s.b.log.from(req.GetStart()) {
		if err := stream.Send(record); err != nil {
			return err
		}
		if recycle {
			return status.Error(codes.Unavailable, "the connection is recycled")
		}
	}
	return nil
}

func (s *auditService) GetReceipt(ctx context.Context, req *stintv1.GetReceiptRequest) (*stintv1.Receipt, error) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if _, err := s.b.own(ctx, req.GetTask()); err != nil {
		return nil, err
	}
	return &stintv1.Receipt{Json: s.b.receipt}, nil
}
