// Package status is the HTTP port for machines that watch the broker and services that trust its certificates: health,
// metrics, CA bundle and CRL. It has no authentication, so nothing secret may ever be served by it.
package status

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
	"golang.org/x/net/netutil"

	"github.com/stint-dev/stint/plugins"
)

// Bounds of what strangers can use up.
const (
	maxConns       = 256
	maxHeader      = 16 << 10
	headerTimeout  = 5 * time.Second
	readTimeout    = 10 * time.Second
	writeTimeout   = 30 * time.Second
	idleTimeout    = time.Minute
	stopTimeout    = 3 * time.Second
	scrapeTimeout  = 10 * time.Second
	maxScrapes     = 4
	contentText    = "text/plain; charset=utf-8"
	contentJSON    = "application/json"
	contentPEM     = "application/x-pem-file"
	contentDERCRL  = "application/pkix-crl" // RFC 2585
	headerContent  = "Content-Type"
	headerCache    = "Cache-Control"
	headerSniffing = "X-Content-Type-Options"
)

// Publisher is a backend that issues certificates, by the name of its instance.
type Publisher struct {
	Name string // "stepca/internal"
	plugins.Publisher
}

// Config is what a Server is made of.
type Config struct {
	// Metrics is served and required. A Metrics belongs to one Server.
	Metrics *Metrics
	// Snapshot reads at each scrape what is gauged; required.
	Snapshot func(ctx context.Context) (Snapshot, error)
	// Parts returns what readiness is made of now; nil is nothing.
	Parts func() []Part
	// Publishers returns those of now; nil is none. The first one's bundle and CRL are served unless a request names another.
	Publishers func() []Publisher
	// Logger is required.
	Logger *zap.Logger
}

// Server answers on the status port.
type Server struct {
	metrics *Metrics
	checks  *checks
	trust   trust
	log     *zap.Logger
}

// New makes a Server; it starts nothing.
func New(cfg Config) (*Server, error) {
	if cfg.Metrics == nil || cfg.Snapshot == nil || cfg.Logger == nil {
		return nil, errors.New("status: metrics, snapshot and logger are required")
	}
	if cfg.Parts == nil {
		cfg.Parts = func() []Part { return nil }
	}
	if cfg.Publishers == nil {
		cfg.Publishers = func() []Publisher { return nil }
	}
	s := &Server{
		metrics: cfg.Metrics,
		checks:  &checks{parts: cfg.Parts},
		trust:   trust{publishers: cfg.Publishers, log: cfg.Logger},
		log:     cfg.Logger,
	}
	g := newGauges(cfg.Snapshot, s.checks, cfg.Publishers, cfg.Logger)
	if err := cfg.Metrics.registry.Register(g); err != nil {
		return nil, fmt.Errorf("status: register gauges: %w", err)
	}
	return s, nil
}

// Handler returns the handler of every path. Only GET and HEAD are answered.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", s.live)
	mux.HandleFunc("GET /readyz", s.ready)
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes,
		Timeout:             scrapeTimeout,
	}))
	mux.HandleFunc("GET /bundle.pem", s.trust.bundlePEM)
	mux.HandleFunc("GET /crl.pem", s.trust.crlPEM)
	mux.HandleFunc("GET /crl.der", s.trust.crlDER)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(headerSniffing, "nosniff")
		w.Header().Set(headerCache, "no-cache")
		mux.ServeHTTP(w, r)
	})
}

// Run serves on l, which it closes, until ctx is done and the answers under way have gone out.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          zap.NewStdLog(s.log),
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(netutil.LimitListener(l, maxConns)) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve status: %w", err)
	case <-ctx.Done():
	}
	stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := server.Shutdown(stopCtx); err != nil {
		s.log.Warn("status answers were cut off", zap.Error(err), zap.NamedError("close", server.Close()))
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve status: %w", err)
	}
	return nil
}

// live answers as long as the process can answer at all.
func (s *Server) live(w http.ResponseWriter, _ *http.Request) {
	s.write(w, contentText, []byte("ok\n"))
}

// write sends a body. That the client went away is nobody's fault.
func (s *Server) write(w http.ResponseWriter, contentType string, body []byte) {
	w.Header().Set(headerContent, contentType)
	if _, err := w.Write(body); err != nil {
		s.log.Debug("status answer not sent", zap.Error(err))
	}
}
