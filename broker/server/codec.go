package server

import (
	"bytes"
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	protobuf "google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// smallestPooled is a capacity that gRPC returns to the pool when it is done, and does not leave to the collector.
const smallestPooled = 4 << 10

// clearing is a buffer pool that forgets: buffers hold tokens and secrets.
type clearing struct{ mem.BufferPool }

// Put clears the whole buffer before it is used again.
func (c clearing) Put(b *[]byte) {
	clear((*b)[:cap(*b)])
	c.BufferPool.Put(b)
}

// codec is the protobuf codec with two differences. An answer with a secret leaves none behind: it is marshalled into a buffer
// that is cleared after it was sent, and the secret in the message is overwritten at once. And bytes that are no protobuf are
// not gRPC's to refuse: it would answer by itself, before any step has seen the call.
type codec struct{ pool mem.BufferPool }

// Name implements [encoding.CodecV2].
func (codec) Name() string { return proto.Name }

// Unmarshal implements [encoding.CodecV2]. What cannot be read becomes an empty message with a mark, which validation refuses.
func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	err := encoding.GetCodecV2(proto.Name).Unmarshal(data, v)
	message, ok := v.(protobuf.Message)
	if err == nil || !ok {
		return err
	}
	protobuf.Reset(message)
	message.ProtoReflect().SetUnknown(unreadable())
	return nil
}

// unreadable marks a message that could not be read: a field under the last number there is. Who sends the same is refused alike.
func unreadable() protoreflect.RawFields {
	return protowire.AppendVarint(protowire.AppendTag(nil, protowire.MaxValidNumber, protowire.VarintType), 1)
}

// isUnreadable reports whether a message came in bytes that are no such message.
func isUnreadable(message protobuf.Message) bool {
	return bytes.Equal(message.ProtoReflect().GetUnknown(), unreadable())
}

// Marshal implements [encoding.CodecV2].
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	issued, ok := v.(*stintv1.IssueCredentialResponse)
	if !ok || issued.GetSecret() == nil {
		return encoding.GetCodecV2(proto.Name).Marshal(v)
	}
	defer wipe(issued.GetSecret())
	buf := c.pool.Get(max(protobuf.Size(issued), smallestPooled))
	raw, err := protobuf.MarshalOptions{UseCachedSize: true}.MarshalAppend((*buf)[:0], issued)
	if err != nil {
		c.pool.Put(buf)
		return nil, fmt.Errorf("marshal an issued credential: %w", err)
	}
	*buf = raw
	return mem.BufferSlice{mem.NewBuffer(buf, c.pool)}, nil
}

// wipe overwrites a secret that was marshalled.
func wipe(secret *stintv1.SecretCredential) {
	for _, field := range secret.GetFields() {
		clear(field)
	}
}
