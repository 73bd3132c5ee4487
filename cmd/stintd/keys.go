package main

import (
	"bytes"
	"crypto/sha256"
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

	"github.com/stint-dev/stint/broker/config"
)

// fixedKeys are the keys that take a restart, and where they stand. The listeners and all of limits are among them because
// grpc-go takes them when a server is made, and never again.
func fixedKeys(c *config.Config) map[string]any {
	return map[string]any{
		"data_dir": &c.DataDir, "task_trust_domain": &c.TaskTrustDomain,
		"listen.grpc": &c.Listen.GRPC, "listen.http": &c.Listen.HTTP, "listen.admin": &c.Listen.Admin, "listen.jwt": &c.Listen.JWT,
		"listen.reflection":     &c.Listen.Reflection,
		"identity.workload_api": &c.Identity.WorkloadAPI, "identity.cert_file": &c.Identity.CertFile,
		"identity.key_file": &c.Identity.KeyFile, "identity.bundle_file": &c.Identity.BundleFile,
		"identity.spiffe_id": &c.Identity.SPIFFEID,
		"ledger":             &c.Ledger.Type,
		"audit.origin":       &c.Audit.Origin, "audit.key_file": &c.Audit.KeyFile,
		"limits.connection_max_age": &c.Limits.ConnectionMaxAge, "limits.connection_grace": &c.Limits.ConnectionGrace,
		"limits.handshake_timeout": &c.Limits.HandshakeTimeout, "limits.max_concurrent_streams": &c.Limits.MaxConcurrentStreams,
		"limits.max_message": &c.Limits.MaxMessage,
		"log.format":         &c.Log.Format,
	}
}

// keepFixed makes what takes a restart as it was, and names the keys that differed, sorted.
func keepFixed(fresh, was *config.Config) []string {
	var changed []string
	old := fixedKeys(was)
	for key, value := range fixedKeys(fresh) {
		now, before := reflect.ValueOf(value).Elem(), reflect.ValueOf(old[key]).Elem()
		if !reflect.DeepEqual(now.Interface(), before.Interface()) {
			changed = append(changed, key)
			now.Set(before)
		}
	}
	slices.Sort(changed)
	return changed
}

// backendTexts returns what each backend of a valid configuration is made from: the wording of its block, and the content of
// the files that it names. They only compare.
func backendTexts(name string, src []byte) (map[string]string, error) {
	blocks := backendBlocks
	if filepath.Ext(name) == ".json" {
		blocks = backendObjects
	}
	texts, err := blocks(name, src)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	for id, text := range texts {
		texts[id] = text + contents(text)
	}
	return texts, nil
}

// backendBlocks reads HCL.
func backendBlocks(name string, src []byte) (map[string]string, error) {
	file, diags := hclsyntax.ParseConfig(src, name, hcl.InitialPos)
	if diags.HasErrors() {
		return nil, diags
	}
	body, ok := file.Body.(*hclsyntax.Body)
	if !ok {
		return nil, fmt.Errorf("a body is %T", file.Body)
	}
	texts := map[string]string{}
	for _, block := range body.Blocks {
		if block.Type == "backend" {
			texts[strings.Join(block.Labels, "/")] = wording(block.Range().SliceBytes(src))
		}
	}
	return texts, nil
}

// wording is a piece of HCL without comments and white space, word by word.
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

// backendObjects reads JSON, in which a block's labels are keys, and what could be one object may be a list of some.
func backendObjects(_ string, src []byte) (map[string]string, error) {
	var top map[string]any
	if err := json.Unmarshal(src, &top); err != nil {
		return nil, err
	}
	texts := map[string]string{}
	for kind, named := range objects(top["backend"]) {
		for name, body := range objects(named) {
			var words []string
			leaves(body, func(word string) { words = append(words, word) })
			texts[kind+"/"+name] = strings.Join(words, "\x00")
		}
	}
	return texts, nil
}

// objects returns an object, or a list of them, as one.
func objects(v any) map[string]any {
	switch v := v.(type) {
	case map[string]any:
		return v
	case []any:
		all := map[string]any{}
		for _, one := range v {
			maps.Copy(all, objects(one))
		}
		return all
	}
	return nil
}

// leaves calls fn for every key and value, in an order that depends on the content alone.
func leaves(v any, fn func(string)) {
	switch v := v.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			fn(key)
			leaves(v[key], fn)
		}
	case []any:
		for _, one := range v {
			leaves(one, fn)
		}
	default:
		fn(fmt.Sprint(v))
	}
}

// contents is a hash of the files that a text names, so that a backend whose CA or key was rotated in place is made anew. A
// file that cannot be read counts as its error.
func contents(text string) string {
	h := sha256.New()
	for word := range strings.SplitSeq(text, "\x00") {
		path := strings.TrimPrefix(word, "file://")
		if !filepath.IsAbs(path) {
			continue
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			raw = []byte(err.Error())
		}
		sum := sha256.Sum256(raw)
		h.Write(sum[:])
	}
	return string(h.Sum(nil))
}
