package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/config"
	"github.com/stint-dev/stint/broker/ledger/sqlite"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/stepca"
)

// embeddedBlocks are the blocks of embedded CAs that were made or used before.
func embeddedBlocks(cfg *config.Config) []config.Backend {
	var out []config.Backend
	for _, block := range cfg.Backends {
		var b stepcaBlock
		if block.Type != "stepca" || config.DecodeBackend(block, &b) != nil || stepca.Mode(b.Mode) == stepca.Remote {
			continue
		}
		if stepca.Begun(caDir(cfg, block)) {
			out = append(out, block)
		}
	}
	return out
}

// showCAs lets an embedded CA that is opened in a scratch directory see the files of the real one. What it writes replaces
// the link, not the file.
func showCAs(cfg, scratch *config.Config) error {
	var faults []error
	for _, block := range embeddedBlocks(cfg) {
		from, to := caDir(cfg, block), caDir(scratch, block)
		files, err := os.ReadDir(from)
		if errors.Is(err, os.ErrPermission) {
			continue // the data directory is reported
		}
		if err == nil {
			err = os.MkdirAll(to, 0o700)
		}
		for _, f := range files {
			if err == nil && f.Type().IsRegular() {
				err = os.Symlink(filepath.Join(from, f.Name()), filepath.Join(to, f.Name()))
			}
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("backend %s: %w", block.ID(), err))
		}
	}
	return errors.Join(faults...)
}

// heldCAs are embedded CAs in the data directory, which this process holds while it tries them. What they sign is then on
// the CRL that the next start serves.
type heldCAs struct {
	backends map[string]plugins.Backend // by instance
	release  func()
}

// or returns what is tried in the place of a backend: itself, where there is no embedded CA of that name yet. That one is
// tried in the scratch directory, and what it signed nobody could use.
func (h heldCAs) or(name string, b plugins.Backend) plugins.Backend {
	if held, ok := h.backends[name]; ok {
		return held
	}
	return b
}

// healthOf asks CAs whether they are well: by instance, those that are there.
func healthOf(ctx context.Context, backends map[string]plugins.Backend) map[string]error {
	out := map[string]error{}
	for name, b := range backends {
		if ca, ok := b.(*stepca.Backend); ok {
			out[name] = ca.Healthy(ctx)
		}
	}
	return out
}

// holdCAs takes the data directory and opens the embedded CAs there. One that is not well is not touched, and one that could
// not be opened in the scratch directory is reported already.
func holdCAs(cfg *config.Config, health map[string]error) heldCAs {
	h := heldCAs{backends: map[string]plugins.Backend{}, release: func() {}}
	blocks := embeddedBlocks(cfg)
	if len(blocks) == 0 {
		return h
	}
	release, refused := takeDataDir(cfg.DataDir)
	if refused == nil {
		h.release = func() { _ = release() } // closing is all that it does
	}
	for _, block := range blocks {
		sick, opened := health[block.ID()]
		if !opened {
			continue
		}
		err := cmp.Or(refused, sick)
		if err == nil {
			h.backends[block.ID()], err = openOne(cfg, block)
		}
		if err != nil {
			h.backends[block.ID()] = untried{reason: err}
		}
	}
	return h
}

// openOne opens one backend of a configuration.
func openOne(cfg *config.Config, block config.Backend) (plugins.Backend, error) {
	only := *cfg
	only.Backends = []config.Backend{block}
	opened, faults := openBackends(surroundings{cfg: &only, logger: zap.NewNop()})
	return opened[block.ID()], errors.Join(faults...)
}

// takeDataDir holds the data directory as serving does. What is written there must stay the broker's, so nobody else may.
func takeDataDir(dir string) (release func() error, err error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && int(stat.Uid) != os.Geteuid() {
		return nil, ownerError{dir: dir, uid: stat.Uid}
	}
	return sqlite.Lock(dir)
}

// ownerError says that the data directory is somebody else's.
type ownerError struct {
	dir string
	uid uint32
}

func (e ownerError) Error() string {
	return fmt.Sprintf("%s belongs to user %d, and what is written there must stay so", e.dir, e.uid)
}

// untried is an embedded CA that cannot be tried. It is no backend otherwise.
type untried struct {
	plugins.Backend

	reason error
}

// Probe says why not.
func (u untried) Probe(_ context.Context, role plugins.Role, _ map[string]string) []plugins.Finding {
	f := plugins.Finding{
		Severity: plugins.Weakens, Code: "probe-skipped", Subject: "role " + role.Name, Problem: "not tried: " + u.reason.Error(),
		Remedy: "mend that, then check again",
	}
	if owner, ok := errors.AsType[ownerError](u.reason); ok {
		f.Remedy = fmt.Sprintf("sudo -u '#%d' stintd check --probe …", owner.uid)
	}
	if errors.Is(u.reason, sqlite.ErrLocked) {
		f.Problem = "not tried, because a broker serves and the CRL is its own: " + u.reason.Error()
		f.Remedy = "stop the broker and check again, or run a task with the role: its receipt names the CRL that holds the certificate"
	}
	return []plugins.Finding{f}
}
