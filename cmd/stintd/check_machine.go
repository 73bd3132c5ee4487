package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/stint-dev/stint/broker/config"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/ledger/sqlite"
	"github.com/stint-dev/stint/plugins"
)

// Access modes of access(2).
const (
	canReach = 1
	canWrite = 2
	canRead  = 4
)

// inspectMachine looks at what the configuration names on this machine: the audit key, the data directory, the ledger and
// the addresses. Offline, what is not there is no fault: the configuration may be checked elsewhere than it is used.
func inspectMachine(ctx context.Context, cfg *config.Config, o checkOptions) []plugins.Finding {
	var found []plugins.Finding
	if _, err := openKeys(cfg.Audit.KeyFile, cfg.Audit.Origin); err != nil && (!o.offline || !errors.Is(err, os.ErrNotExist)) {
		found = append(found, plugins.Finding{
			Severity: plugins.Breaks, Code: "audit-key", Subject: "audit key", Problem: err.Error(), Remedy: auditKeyRemedy(cfg, err),
		})
	}
	info, err := os.Stat(cfg.DataDir)
	switch {
	case err == nil:
		found = append(found, inspectDataDir(ctx, cfg.DataDir, info)...)
	case !errors.Is(err, os.ErrNotExist):
		found = append(found, dataDirFault(cfg.DataDir, err.Error()))
	case !o.offline:
		if parent := existing(cfg.DataDir); syscall.Access(parent, canWrite|canReach) != nil {
			found = append(found, dataDirFault(cfg.DataDir, fmt.Sprintf("%s is not there, and cannot be made in %s", cfg.DataDir, parent)))
		}
	}
	if !o.offline {
		found = append(found, inspectAddresses(ctx, cfg.Listen)...)
	}
	return found
}

// auditKeyRemedy makes a key only where none was lost: a log is verified with the key that signed it.
func auditKeyRemedy(cfg *config.Config, missing error) string {
	_, ledger := os.Stat(filepath.Join(cfg.DataDir, sqlite.File))
	command := fmt.Sprintf("stintd audit key --origin %s --file %s", cfg.Audit.Origin, cfg.Audit.KeyFile)
	if errors.Is(missing, os.ErrNotExist) && errors.Is(ledger, os.ErrNotExist) {
		return command
	}
	return fmt.Sprintf("restore %s from a backup; if there never was one, remove it, and %s", cfg.Audit.KeyFile, command)
}

func dataDirFault(dir, problem string) plugins.Finding {
	return plugins.Finding{
		Severity: plugins.Breaks, Code: "data-dir", Subject: "data directory", Problem: problem,
		Remedy: "install -d -m 0700 -o stint -g stint " + dir,
	}
}

// existing returns the nearest folder above a path that is there.
func existing(path string) string {
	for parent := filepath.Dir(path); ; parent = filepath.Dir(parent) {
		if _, err := os.Stat(parent); err == nil || parent == filepath.Dir(parent) {
			return parent
		}
	}
}

// inspectDataDir looks at a data directory that is there, whether a broker serves from it or not.
func inspectDataDir(ctx context.Context, dir string, info os.FileInfo) []plugins.Finding {
	if !info.IsDir() {
		return []plugins.Finding{dataDirFault(dir, dir+" is no directory")}
	}
	if err := syscall.Access(dir, canRead|canWrite|canReach); err != nil {
		return []plugins.Finding{dataDirFault(dir, fmt.Sprintf("%s: %s for the user who runs this", dir, err))}
	}
	var found []plugins.Finding
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		found = append(found, plugins.Finding{
			Severity: plugins.Weakens, Code: "data-dir-mode", Subject: "data directory",
			Problem: fmt.Sprintf("%s has mode %04o: others than the broker can look in", dir, mode), Remedy: "chmod 0700 " + dir,
		})
	}
	file := filepath.Join(dir, sqlite.File)
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
		return found
	}
	store, err := sqlite.OpenReader(ctx, file)
	if err == nil {
		err = errors.Join(store.Verify(ctx), store.Close())
	}
	if err != nil {
		found = append(found, ledgerFinding(err))
	}
	return found
}

// ledgerFinding says what is wrong with a ledger. One of another version is only a warning: serve migrates an older one.
func ledgerFinding(err error) plugins.Finding {
	f := plugins.Finding{
		Severity: plugins.Breaks, Code: "ledger", Subject: "ledger", Problem: err.Error(), Remedy: "see docs/operations.md, Backup",
	}
	if errors.Is(err, sqlite.ErrVersion) {
		f.Severity = plugins.Weakens
		f.Code = "ledger-version"
		f.Remedy = "make a backup; serve then migrates a ledger that is older, and refuses one that is newer"
	}
	if errors.Is(err, ledger.ErrDamaged) {
		f.Code = "ledger-damaged"
		f.Remedy = "systemctl stop stintd; keep the files, and restore a backup: docs/operations.md, The ledger is damaged"
	}
	return f
}

// inspectAddresses resolves what serving listens on. Whether a port is free does not count: the broker may serve.
func inspectAddresses(ctx context.Context, l config.Listen) []plugins.Finding {
	var found []plugins.Finding
	for _, at := range []struct{ key, addr string }{{"grpc", l.GRPC}, {"http", l.HTTP}, {"jwt", l.JWT}} {
		host, _, err := net.SplitHostPort(at.addr)
		if at.addr == "" || host == "" {
			continue
		}
		if err == nil {
			_, err = net.DefaultResolver.LookupIPAddr(ctx, host)
		}
		if err != nil {
			found = append(found, plugins.Finding{
				Severity: plugins.Breaks, Code: "listen", Subject: "listen." + at.key, Problem: fmt.Sprintf("%s: %s", at.addr, err),
				Remedy: "write an address of this machine, as in 0.0.0.0:7846",
			})
		}
	}
	return found
}
