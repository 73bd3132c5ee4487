package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/attestor/jwtsvid"
	"github.com/stint-dev/stint/attestor/peercred"
	"github.com/stint-dev/stint/attestor/x509svid"
	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/fault"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/server"
	"github.com/stint-dev/stint/broker/status"
	"github.com/stint-dev/stint/plugins"
)

// observer turns what the server measures into metrics.
type observer struct{ metrics *status.Metrics }

// Called counts one call.
func (o observer) Called(method string, code codes.Code, _ fault.Reason, took time.Duration) {
	o.metrics.ObserveRPC(method, code.String(), took)
}

// newServer opens the ways in and makes the gRPC server.
func (h *house) newServer(ctx context.Context) (*server.Server, error) {
	domains, err := h.cfg.Domains(h.source.ID().TrustDomain())
	if err != nil {
		return nil, err
	}
	endpoints, err := h.endpoints(ctx, domains)
	if err != nil {
		return nil, err
	}
	return server.New(server.Config{ //nolint:contextcheck // a server has its calls' contexts, not the one of its making
		Broker: h.broker, Ledger: h.ledger, Reconciler: h.reconciler, Admins: h.admins, Endpoints: endpoints, Observer: observer{h.metrics},
		Limits: server.Limits{
			MaxConnectionAge: h.cfg.Limits.ConnectionMaxAge, MaxConnectionAgeGrace: h.cfg.Limits.ConnectionGrace,
			ConnectionTimeout: h.cfg.Limits.HandshakeTimeout, MaxConcurrentStreams: uint32(h.cfg.Limits.MaxConcurrentStreams), //nolint:gosec // the configuration bounds it
		},
		Logger: h.logger.Named("grpc"), VerifierKey: h.keys.Text, Version: version, ServerID: h.source.ID().String(),
		Reflect: h.cfg.Listen.Reflection,
	})
}

// endpoints opens the mTLS port, and the JWT port and the admin socket where they are configured.
func (h *house) endpoints(ctx context.Context, domains attestor.Domains) ([]server.Endpoint, error) {
	limit := int(h.cfg.Limits.MaxMessage)
	att := x509svid.New(h.source, domains)
	h.accepting = append(h.accepting, att)
	count := server.HandshakeRefused(h.broker, "grpc")
	seldom := rate.Sometimes{First: 10, Interval: time.Second} // strangers must not fill the log
	h.guard = att.Credentials(func(remote net.Addr, err error) {
		count(remote, err)
		seldom.Do(func() { h.logger.Info("handshake refused", zap.Stringer("remote", remote), zap.Error(err)) })
	})
	grpcListener, err := listenTCP(ctx, h.cfg.Listen.GRPC)
	if err != nil {
		return nil, err
	}
	out := []server.Endpoint{{
		Name: "grpc", Listener: grpcListener, Credentials: h.guard, Attestor: att, Changed: h.source.Changed, MaxMessage: limit,
	}}
	if h.cfg.Listen.JWT != "" {
		e, err := h.jwtEndpoint(ctx, domains, limit)
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	if h.cfg.Listen.Admin != "" {
		if err := os.MkdirAll(filepath.Dir(h.cfg.Listen.Admin), 0o750); err != nil {
			return nil, fmt.Errorf("admin socket: %w", err)
		}
		l, err := peercred.Listen(ctx, h.cfg.Listen.Admin)
		if err != nil {
			return nil, err
		}
		out = append(out, server.Endpoint{
			Name: "admin", Listener: l, Credentials: peercred.Credentials{}, Attestor: peercred.Attestor{},
			MaxMessage: server.AdminMaxMessage,
		})
	}
	return out, nil
}

func (h *house) jwtEndpoint(ctx context.Context, domains attestor.Domains, limit int) (server.Endpoint, error) {
	att, err := jwtsvid.New(h.source, domains, h.source.ID().String())
	if err != nil {
		return server.Endpoint{}, err
	}
	h.accepting = append(h.accepting, att)
	l, err := listenTCP(ctx, h.cfg.Listen.JWT)
	return server.Endpoint{
		Name: "jwt", Listener: l, Credentials: credentials.NewTLS(x509svid.TokenServerConfig(h.source)), Attestor: att,
		Changed: h.source.Changed, MaxMessage: limit,
	}, err
}

func listenTCP(ctx context.Context, addr string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return l, nil
}

// newStatus makes the server of health, metrics, bundle and CRL.
func (h *house) newStatus() (*status.Server, error) {
	return status.New(status.Config{
		Metrics: h.metrics, Snapshot: h.snapshot, Parts: h.parts, Publishers: h.publishers, Logger: h.logger.Named("status"),
	})
}

// parts are what readiness is made of, with the backends of the moment.
func (h *house) parts() []status.Part {
	parts := []status.Part{
		{Name: "serving", Check: func(context.Context) error { return stoppingError(&h.stopping) }},
		{Name: "ledger", Check: h.checkLedger},
		{Name: "identity", Check: func(context.Context) error { return h.source.Check(time.Now()) }},
	}
	for _, in := range h.catalog.Backends().All() {
		if p, ok := in.Backend.(plugins.Prober); ok {
			parts = append(parts, status.Part{Name: "backend " + in.Name, Backend: in.Name, Check: p.Healthy})
		}
	}
	return append(parts, h.missingParts()...)
}

// publishers are the backends of the moment that issue certificates.
func (h *house) publishers() []status.Publisher {
	var publishers []status.Publisher
	for _, in := range h.catalog.Backends().All() {
		if p, ok := in.Backend.(plugins.Publisher); ok {
			publishers = append(publishers, status.Publisher{Name: in.Name, Publisher: p})
		}
	}
	return publishers
}

func stoppingError(stopping *atomic.Bool) error {
	if stopping.Load() {
		return errors.New("stopping")
	}
	return nil
}

func (h *house) checkLedger(ctx context.Context) error {
	if err := h.ledger.Damaged(); err != nil {
		return fmt.Errorf("nothing is issued, revoking goes on as far as it can: %w", err)
	}
	if err := h.heldError(); err != nil {
		return err
	}
	if h.ledger.Low() {
		return errors.New("free disk is below the mark: nothing is issued, revoking goes on")
	}
	_, err := h.openTasks(ctx)
	return err
}

// snapshot reads what is gauged.
func (h *house) snapshot(ctx context.Context) (status.Snapshot, error) {
	s := status.Snapshot{FreeDisk: -1}
	err := h.ledger.View(ctx, func(r ledger.Reader) error {
		var err error
		if s.Stats, err = r.Stats(); err != nil {
			return err
		}
		head, err := r.Head()
		s.AuditSize = head.Size
		return err
	})
	if err != nil {
		return s, err
	}
	if free, err := h.store.FreeBytes(); err == nil {
		s.FreeDisk = int64(min(free, 1<<62))
	}
	s.LanesHeld, s.ClockJumps, s.Unconfirmed = h.teardown.Held(), h.teardown.ClockJumps(), h.broker.Held()
	if svid, err := h.source.GetX509SVID(); err == nil {
		s.SVIDExpiry = svid.Certificates[0].NotAfter
	}
	return s, nil
}

// openExporter opens the copies of the audit log that are configured. Without any it waits for a reload.
func (h *house) openExporter() error {
	var err error
	h.exporter, err = audit.NewExporter(audit.ExportConfig{
		Source: h.ledger, File: h.cfg.Audit.File, Checkpoints: h.cfg.Audit.Checkpoints, Logger: h.logger.Named("audit"),
	})
	return err
}
