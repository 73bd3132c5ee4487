package servertest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// Shared holds servers that the tests of one package share. Each is started when first asked for. The zero value is
// ready, and is a variable of the test package:
//
//	var servers servertest.Shared
//
//	func TestMain(m *testing.M) { servers.Run(m) }
//
//	func TestX(t *testing.T) { vault := servers.Vault(t) ... }
//
// A test of a shared server makes mounts, roles and databases with names of its own, and does not stop, seal or pause
// it. A Shared must not be copied.
type Shared struct {
	vault    once[*Vault]
	stepCA   once[*StepCA]
	postgres once[*Postgres]

	// mu guards what follows.
	mu    sync.Mutex
	close []func() error
}

// Run runs the tests and then stops what they started. It is called by TestMain, which needs no os.Exit after it.
func (s *Shared) Run(m *testing.M) {
	m.Run()
	s.mu.Lock()
	closers := s.close
	s.mu.Unlock()
	var errs error
	for _, end := range closers {
		errs = errors.Join(errs, end())
	}
	if errs != nil {
		fmt.Fprintln(os.Stderr, "servertest: stop shared servers:", errs)
	}
}

// Vault returns the shared Vault, which keeps everything in memory.
func (s *Shared) Vault(tb testing.TB) *Vault {
	tb.Helper()
	vault, err := s.vault.get(func() (*Vault, error) {
		dir, err := s.dir()
		if err != nil {
			return nil, err
		}
		vault, err := newVault(outlive(tb), dir, VaultOptions{})
		if err == nil {
			s.atEnd(func() error { return vault.end(vault.command.stop) })
		}
		return vault, err
	})
	give(tb, err)
	return vault
}

// StepCA returns the shared step-ca, made with the zero StepCAOptions.
func (s *Shared) StepCA(tb testing.TB) *StepCA {
	tb.Helper()
	ca, err := s.stepCA.get(func() (*StepCA, error) {
		dir, err := s.dir()
		if err != nil {
			return nil, err
		}
		ca, err := newStepCA(outlive(tb), dir, StepCAOptions{})
		if err == nil {
			s.atEnd(func() error { return ca.end(ca.command.stop) })
		}
		return ca, err
	})
	give(tb, err)
	return ca
}

// Postgres returns the shared PostgreSQL.
func (s *Shared) Postgres(tb testing.TB) *Postgres {
	tb.Helper()
	postgres, err := s.postgres.get(func() (*Postgres, error) {
		postgres, err := newPostgres(outlive(tb))
		if err == nil {
			s.atEnd(postgres.remove)
		}
		return postgres, err
	})
	give(tb, err)
	return postgres
}

// dir makes a directory that is removed at the end. It cannot be a test's: that one ends with the first test.
func (s *Shared) dir() (string, error) {
	dir, err := os.MkdirTemp("", "stint-server-")
	if err != nil {
		return "", fmt.Errorf("make directory of server: %w", err)
	}
	s.atEnd(func() error { return os.RemoveAll(filepath.Clean(dir)) })
	return dir, nil
}

// atEnd registers what Run does last; the latest goes first.
func (s *Shared) atEnd(end func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.close = append([]func() error{end}, s.close...)
}

// outlive returns the test's context without its end.
func outlive(tb testing.TB) context.Context {
	tb.Helper()
	return context.WithoutCancel(tb.Context())
}

// once is a value that is made by the first caller and kept, an error too.
type once[T any] struct {
	once  sync.Once
	value T
	err   error
}

func (o *once[T]) get(start func() (T, error)) (T, error) {
	o.once.Do(func() { o.value, o.err = start() })
	return o.value, o.err
}
