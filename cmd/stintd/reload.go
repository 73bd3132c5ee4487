package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/audit"
	"github.com/stint-dev/stint/broker/config"
	"github.com/stint-dev/stint/broker/resource"
)

// reloader is what SIGHUP needs to read everything again.
type reloader struct {
	path     string
	started  topLevel // what the broker was started with
	identity func() error
	hangup   <-chan os.Signal
}

// onHangup reloads on SIGHUP until ctx is done, and returns then.
func (h *house) onHangup(ctx context.Context, r reloader) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.hangup:
			if err := h.reload(ctx, r); err != nil {
				h.logger.Error("reload refused; what was in force stays in force", zap.Error(err))
				continue
			}
			h.logger.Info("reloaded", zap.String("policy_set", h.policySet()))
		}
	}
}

// reload takes what can change while serving: resources, the files of the identity, and the audit files. Everything is read
// and found valid before any of it is in force. Changes of other keys are named and wait for a restart.
func (h *house) reload(ctx context.Context, r reloader) error {
	fresh, keys, err := readConfig(r.path)
	if err != nil {
		return err
	}
	var files []resource.File
	if fresh.Resources != "" {
		if files, err = readResources(fresh.Resources); err != nil {
			return err
		}
		if _, err = h.catalog.Apply(ctx, broker.Caller{}, broker.Apply{Files: files, Prune: true, DryRun: true}); err != nil {
			return err
		}
	}
	if err = r.identity(); err != nil {
		return err
	}
	if err = h.putResources(ctx, fresh.Resources, files); err != nil {
		return err
	}
	if h.exporter != nil {
		h.exporter.Reopen()
	}
	for _, key := range keys.changedSince(r.started) {
		h.logger.Warn("this key changed and needs a restart; the old value stays in force", zap.String("key", key))
	}
	return h.record(ctx, audit.ConfigReloaded, "")
}

// loadResources reads the folder of resources, where there is one, and makes it what is in force.
func (h *house) loadResources(ctx context.Context) error {
	if h.cfg.Resources == "" {
		return nil
	}
	files, err := readResources(h.cfg.Resources)
	if err != nil {
		return err
	}
	return h.putResources(ctx, h.cfg.Resources, files)
}

// putResources makes the files of a folder what is in force, and the API read-only. Without a folder, what is in force stays
// and the API may change it.
func (h *house) putResources(ctx context.Context, dir string, files []resource.File) error {
	if dir == "" {
		h.cfg.Resources = ""
		h.catalog.SetReadOnly(false)
		return nil
	}
	h.catalog.SetReadOnly(true) // before the files are in force, so that nobody changes them in between
	applied, err := h.catalog.Load(ctx, broker.Caller{}, files)
	for _, warning := range applied.Warnings {
		h.logger.Warn(warning)
	}
	if err != nil {
		h.catalog.SetReadOnly(h.cfg.Resources != "")
		return err
	}
	h.cfg.Resources = dir
	return nil
}

// readResources reads every .yaml and .yml file of a folder, by name.
func readResources(dir string) ([]resource.File, error) {
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

// topLevel is a configuration by its top-level keys, a block with its labels being one. The values only compare.
type topLevel map[string]any

// readConfig reads the configuration, and what it says under each top-level key.
func readConfig(path string) (*config.Config, topLevel, error) {
	src, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read configuration: %w", err)
	}
	cfg, err := config.Parse(path, src, builtinNames()...)
	if err != nil {
		return nil, nil, err
	}
	keys, err := topLevelOf(path, src)
	return cfg, keys, err
}

// topLevelOf takes a configuration that is valid apart.
func topLevelOf(name string, src []byte) (topLevel, error) {
	keys := topLevel{}
	if filepath.Ext(name) == ".json" {
		if err := json.Unmarshal(src, &keys); err != nil {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
		return keys, nil
	}
	file, diags := hclsyntax.ParseConfig(src, name, hcl.InitialPos)
	if diags.HasErrors() {
		return nil, fmt.Errorf("read configuration: %w", diags)
	}
	body, ok := file.Body.(*hclsyntax.Body)
	if !ok {
		return nil, fmt.Errorf("read configuration: a body is %T", file.Body)
	}
	for key, attribute := range body.Attributes {
		keys[key] = wording(attribute.SrcRange.SliceBytes(src))
	}
	for _, block := range body.Blocks {
		key := strings.Join(append([]string{block.Type}, block.Labels...), " ")
		keys[key] = wording(block.Range().SliceBytes(src))
	}
	return keys, nil
}

// wording is a piece of HCL without comments and white space.
func wording(src []byte) string {
	tokens, _ := hclsyntax.LexConfig(src, "", hcl.InitialPos) // it was parsed before
	var words [][]byte
	for _, token := range tokens {
		if token.Type != hclsyntax.TokenComment && token.Type != hclsyntax.TokenNewline {
			words = append(words, token.Bytes)
		}
	}
	return string(bytes.Join(words, []byte{0}))
}

// changedSince names the keys that differ and take a restart, sorted.
func (t topLevel) changedSince(old topLevel) []string {
	all := maps.Clone(old)
	maps.Copy(all, t)
	var changed []string
	for key := range all {
		if key != "resources" && !reflect.DeepEqual(t[key], old[key]) {
			changed = append(changed, key)
		}
	}
	slices.Sort(changed)
	return changed
}
