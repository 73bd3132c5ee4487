package server

import (
	"encoding/base64"
	"strings"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/task"
)

// defaultPage is the size of a page where none is asked for.
const defaultPage = 50

func pageSize(asked int32) int {
	if asked <= 0 {
		return defaultPage
	}
	return int(asked)
}

// cutPage cuts a list that was read with one item too many to a page, and returns the token of the next one: the last ID in
// base64url. It is "" after the last page.
func cutPage[T any](items []T, size int, id func(T) [16]byte) ([]T, string) {
	if len(items) <= size {
		return items, ""
	}
	last := id(items[size-1])
	return items[:size], base64.RawURLEncoding.EncodeToString(last[:])
}

// pageToken reads a token; "" is the zero ID, which starts a listing.
func pageToken(token string) ([16]byte, error) {
	if token == "" {
		return [16]byte{}, nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil || len(raw) != 16 || len(token) != base64.RawURLEncoding.EncodedLen(16) { // it skips line breaks
		return [16]byte{}, invalid(fault.Field{Name: "page_token", Problem: "must be the next_page_token of an answer"})
	}
	return [16]byte(raw), nil
}

func taskToken(token string) (task.ID, error) {
	id, err := pageToken(token)
	return task.ID(id), err
}

func leaseToken(token string) (lease.ID, error) {
	id, err := pageToken(token)
	return lease.ID(id), err
}

// leaseID reads a lease's name; the collection may be left out. A name that can be nobody's is not found, like any other.
func leaseID(name string) (lease.ID, error) {
	id, err := lease.ParseID(strings.TrimPrefix(name, "leases/"))
	if err != nil {
		return id, fault.New(fault.NotFound, "there is no such lease, or it is not yours")
	}
	return id, nil
}

// optionalTask reads a task's name; "" is none.
func optionalTask(name string) (*broker.TaskRef, error) {
	if name == "" {
		return nil, nil //nolint:nilnil // no task is asked for
	}
	ref, err := broker.ParseTaskRef(name)
	return &ref, err
}
