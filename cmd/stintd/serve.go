package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/stint-dev/stint/attestor/devdomain"
	"github.com/stint-dev/stint/attestor/source"
	"github.com/stint-dev/stint/broker/config"
)

const (
	// identityTimeout is how long serving waits for its own SVID at the start. Where the configuration says whose that is,
	// identityWait is enough: it goes on without, and only who needs it waits.
	identityTimeout = 60 * time.Second
	identityWait    = 10 * time.Second
)

func serveCommand() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use:   "serve --config FILE",
		Short: "Run the broker",
		Long: `Run the broker until SIGTERM. It then admits nothing more, finishes what is in flight, leaves open tasks open
and says so; a second SIGTERM ends it at once. SIGHUP takes the configuration and resources anew, all or nothing; on an
error the old stay in force. Keys that changed and take a restart are named in the log.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), path) },
	}
	cmd.Flags().StringVar(&path, "config", "/etc/stint/stint.hcl", "configuration file (HCL, or JSON when it ends in .json)")
	return cmd
}

// serve runs the broker of a configuration. A test changes what it is built from.
func serve(ctx context.Context, path string, changes ...func(*blueprint)) error {
	started := time.Now()
	hangup := make(chan os.Signal, 1) // from the first moment on: unheard, SIGHUP would end the process
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	cfg, texts, err := readConfig(path)
	if err != nil {
		return err
	}
	logger, level, err := newLogger(cfg.Log)
	if err != nil {
		return err
	}
	src, identity, err := openIdentity(ctx, cfg, logger)
	if err != nil {
		return err
	}
	if err = refuseDevelopmentCA(src.Authorities()); err != nil {
		return err
	}
	k, err := openKeys(cfg.Audit.KeyFile, cfg.Audit.Origin)
	if err != nil {
		return err
	}
	backends, faults := openBackends(surroundings{cfg: cfg, jwt: src, logger: logger})
	if len(faults) > 0 {
		return errors.Join(faults...)
	}
	b := blueprint{cfg: cfg, source: src, keys: k, backends: inOrder(cfg, backends), texts: texts, logger: logger, level: level}
	for _, change := range changes {
		change(&b)
	}
	h, err := build(ctx, b)
	if err != nil {
		return err
	}
	return h.run(ctx, func(ctx context.Context) error {
		logger.Info("ready", zap.String("version", version), zap.Stringer("id", src.ID()), zap.String("grpc", cfg.Listen.GRPC),
			zap.String("http", cfg.Listen.HTTP), zap.Duration("took", time.Since(started)))
		h.onHangup(ctx, reloader{path: path, identity: identity, hangup: hangup})
		return nil
	})
}

// openIdentity opens where the daemon's own SVID comes from, and returns what reads its files again; nil for a Workload API.
func openIdentity(
	ctx context.Context, cfg *config.Config, logger *zap.Logger,
) (*source.Source, func() (source.Material, error), error) {
	id := cfg.Identity
	if id.WorkloadAPI != "" {
		wait := identityTimeout
		if !id.SPIFFEID.IsZero() {
			wait = identityWait
		}
		waitCtx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		src, err := source.OpenWorkloadAPI(waitCtx, source.WorkloadAPI{
			Addr: id.WorkloadAPI, ID: id.SPIFFEID, Trust: id.TrustDomains, JWTBundles: cfg.Listen.JWT != "", Wait: true, Await: true,
			Accept: func(m source.Material) error {
				return refuseDevelopmentCA(authoritiesOf(m.X509, append(slices.Clone(id.TrustDomains), id.SPIFFEID.TrustDomain())))
			},
			Logger: logger.Named("identity"),
		})
		if err == nil {
			if _, missing := src.GetX509SVID(); missing != nil {
				logger.Error("serving without an identity: nobody but the admin socket can call, and Vault cannot be logged in to by JWT, "+
					"until the Workload API hands out an SVID", zap.Stringer("spiffe_id", id.SPIFFEID))
			}
		}
		return src, nil, err
	}
	own := id.SPIFFEID.TrustDomain()
	if own.IsZero() && len(id.TrustDomains) > 0 {
		own = id.TrustDomains[0]
	}
	files, err := source.OpenFiles(source.Files{
		Cert: id.CertFile, Key: id.KeyFile, Bundles: map[spiffeid.TrustDomain]string{own: id.BundleFile}, Logger: logger.Named("identity"),
	})
	if err != nil {
		return nil, nil, err
	}
	return files.Source, files.Read, nil
}

// authoritiesOf returns the X.509 authorities of some trust domains.
func authoritiesOf(set *x509bundle.Set, domains []spiffeid.TrustDomain) []*x509.Certificate {
	var all []*x509.Certificate
	for _, td := range domains {
		if set == nil {
			break
		}
		if b, ok := set.Get(td); ok {
			all = append(all, b.X509Authorities()...)
		}
	}
	return all
}

// refuseDevelopmentCA keeps keys that lie unencrypted in somebody's checkout from being trusted in production.
func refuseDevelopmentCA(authorities []*x509.Certificate) error {
	for _, cert := range authorities {
		if devdomain.Is(cert) {
			return fmt.Errorf("the bundle holds a development CA (%s), which `stintd dev` made; serve refuses it", cert.Subject)
		}
	}
	return nil
}

// newLogger writes to standard error, and returns the handle of its level too.
func newLogger(cfg config.Log) (*zap.Logger, zap.AtomicLevel, error) {
	level, err := zapcore.ParseLevel(cfg.Level)
	if err != nil {
		return nil, zap.AtomicLevel{}, fmt.Errorf("log level: %w", err)
	}
	z := zap.NewProductionConfig()
	z.Level, z.Encoding, z.DisableStacktrace, z.Sampling = zap.NewAtomicLevelAt(level), cfg.Format, true, nil
	z.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	if strings.EqualFold(cfg.Format, "console") {
		z.EncoderConfig = zap.NewDevelopmentEncoderConfig()
	}
	logger, err := z.Build()
	return logger, z.Level, err
}
