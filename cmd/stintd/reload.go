package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/attestor/admin"
	"github.com/stint-dev/stint/attestor/source"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/config"
	"github.com/stint-dev/stint/broker/resource"
)

// leavingTick is how often a backend that is leaving is looked at.
const leavingTick = time.Second

// reloader is what SIGHUP needs to read everything again.
type reloader struct {
	path string
	// identity reads the files of the identity; nil where they are not from files.
	identity func() (source.Material, error)
	hangup   <-chan os.Signal
}

// onHangup reloads on SIGHUP, and lets go of backends that are leaving, until ctx is done, and returns then.
func (h *house) onHangup(ctx context.Context, r reloader) {
	tick := time.NewTicker(leavingTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			h.letGo(ctx)
		case <-r.hangup:
			if err := h.reload(ctx, r); err != nil {
				h.logger.Error("reload refused; what was in force stays in force", zap.Error(err))
				continue
			}
			h.logger.Info("reloaded", zap.String("policy_set", h.policySet()))
		}
	}
}

// reload takes all of a configuration that can change while serving, or nothing. Everything is read, made and found valid
// first; then one commit puts in force what decides, and after that only what cannot fail is left to do.
func (h *house) reload(ctx context.Context, r reloader) error {
	next, err := h.prepare(r)
	if err != nil {
		return err
	}
	applied, err := h.catalog.Renew(ctx, broker.Renewal{
		Terms:     broker.Terms{Backends: next.backends.snapshot, Forbidden: next.admins.Overlapping},
		FromFiles: next.cfg.Resources != "", Files: next.files, Note: next.backends.String(),
	})
	if err != nil && h.catalog.Backends() != next.backends.snapshot { // else it came to be stored all the same
		return err
	}
	for _, warning := range applied.Warnings {
		h.logger.Warn(warning)
	}
	h.take(next)
	for _, key := range next.restart {
		h.logger.Warn("this key changed and needs a restart; the old value stays in force", zap.String("key", key))
	}
	return nil
}

// renewal is a configuration that was found valid, and what was made of it. Nothing of it is in force yet.
type renewal struct {
	cfg      *config.Config // as it will be in force: what takes a restart is as it was
	restart  []string       // keys that changed and take one, sorted
	level    zapcore.Level
	admins   *admin.Roles
	domains  attestor.Domains
	material *source.Material // nil where the identity is not from files
	backends backendChange
	files    []resource.File
}

// prepare reads and makes everything that a reload needs, and puts nothing in force.
func (h *house) prepare(r reloader) (*renewal, error) {
	fresh, texts, err := readConfig(r.path)
	if err != nil {
		return nil, err
	}
	next := &renewal{cfg: fresh}
	next.restart = keepFixed(fresh, h.cfg)
	if next.level, err = zapcore.ParseLevel(fresh.Log.Level); err != nil {
		return nil, fmt.Errorf("log level: %w", err)
	}
	if next.admins, err = adminRoles(fresh); err != nil {
		return nil, err
	}
	if err = h.prepareIdentity(next, r.identity); err != nil {
		return nil, err
	}
	if err = h.prepareExport(fresh.Audit); err != nil {
		return nil, err
	}
	if next.files, err = readResources(fresh.Resources); err != nil {
		return nil, err
	}
	if next.backends, err = h.prepareBackends(fresh, texts); err != nil {
		return nil, err
	}
	next.restart = append(next.restart, next.backends.restart...)
	slices.Sort(next.restart)
	return next, nil
}

// prepareIdentity reads the files of the identity and makes the accepted trust domains.
func (h *house) prepareIdentity(next *renewal, read func() (source.Material, error)) error {
	own := h.source.ID().TrustDomain()
	authorities := h.source.Authorities(next.cfg.Identity.TrustDomains...)
	if read != nil {
		material, err := read()
		if err != nil {
			return err
		}
		next.material, own = &material, material.SVID.ID.TrustDomain()
		for _, b := range material.X509.Bundles() {
			authorities = append(authorities, b.X509Authorities()...)
		}
	}
	if err := refuseDevelopmentCA(authorities); err != nil {
		return err
	}
	var err error
	next.domains, err = next.cfg.Domains(own)
	return err
}

// prepareExport sees to it that copies of the audit log can be written to paths that are new.
func (h *house) prepareExport(fresh config.Audit) error {
	var file, checkpoints string
	if fresh.File != h.cfg.Audit.File {
		file = fresh.File
	}
	if fresh.Checkpoints != h.cfg.Audit.Checkpoints {
		checkpoints = fresh.Checkpoints
	}
	return audit.CanMove(file, checkpoints)
}

// take puts the rest of a renewal in force: what cannot fail.
func (h *house) take(next *renewal) {
	h.cfg = next.cfg
	h.level.SetLevel(next.level)
	h.admins.Replace(next.admins)
	for _, a := range h.accepting { // before the bundles change: what was verified by the old ones is forgotten then
		a.SetDomains(next.domains)
	}
	if next.material != nil {
		if err := h.source.Replace(*next.material); err != nil {
			h.logger.Error("the files of the identity were read and not taken", zap.Error(err))
		}
	}
	h.source.SetTrust(next.cfg.Identity.TrustDomains...)
	h.ledger.SetStopIssuingBelow(uint64(next.cfg.Ledger.StopIssuingBelow)) //nolint:gosec // the configuration refuses negative sizes
	h.teardown.SetStuckAfter(next.cfg.Teardown.StuckAfter)
	h.reconciler.SetEvery(next.cfg.Reconcile.Every)
	h.exporter.Move(next.cfg.Audit.File, next.cfg.Audit.Checkpoints)
	h.takeBackends(next.backends)
}

// readResources reads every .yaml and .yml file of a folder, by name; none where there is no folder.
func readResources(dir string) ([]resource.File, error) {
	if dir == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("resources: %w", err)
	}
	var files []resource.File
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); e.IsDir() || (ext != ".yaml" && ext != ".yml") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("resources: %w", err)
		}
		files = append(files, resource.File{Name: path, YAML: string(raw), Source: path})
	}
	return files, nil
}

// readConfig reads the configuration, and what each backend is made from.
func readConfig(path string) (*config.Config, map[string]string, error) {
	src, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read configuration: %w", err)
	}
	cfg, err := config.Parse(path, src, builtinNames()...)
	if err != nil {
		return nil, nil, err
	}
	texts, err := backendTexts(path, src)
	return cfg, texts, err
}
