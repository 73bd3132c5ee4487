package servertest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// writeConfig writes step-ca's configuration to path; the authority's files are beside it.
func (s *StepCA) writeConfig(path, address string, options StepCAOptions) error {
	dir := filepath.Dir(path)
	database := cmp.Or(options.Database, "badgerv2")
	source := filepath.Join(dir, "db")
	if database == "bbolt" {
		source += ".bbolt" // one file, where the others are a directory
	}
	db := map[string]any{"type": database, "dataSource": source}
	if options.Source != "" {
		db["dataSource"], db["database"] = options.Source, "stepca"
	} else {
		s.database = source
	}
	config := map[string]any{
		"root":     filepath.Join(dir, "root.pem"),
		"crt":      filepath.Join(dir, "intermediate.pem"),
		"key":      filepath.Join(dir, "intermediate.key"),
		"address":  address,
		"dnsNames": []string{"127.0.0.1", "localhost"},
		"logger":   map[string]any{"format": "text"},
		"db":       db,
		"crl": map[string]any{
			"enabled": true, "generateOnRevoke": true,
			"cacheDuration": cmp.Or(options.CRLValidity, time.Minute).String(),
		},
		"tls": map[string]any{"minVersion": 1.2, "maxVersion": 1.3},
		"authority": map[string]any{
			"provisioners": []any{s.provisioner(options)},
		},
	}
	if options.Change != nil {
		options.Change(config)
	}
	text, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return fmt.Errorf("encode step-ca configuration: %w", err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return fmt.Errorf("write step-ca configuration: %w", err)
	}
	return nil
}

// provisioner describes the JWK provisioner as an operator would for Stint.
func (s *StepCA) provisioner(options StepCAOptions) map[string]any {
	return map[string]any{
		"type": "JWK",
		"name": s.Provisioner,
		"key":  s.ProvisionerKey.Public(),
		"claims": map[string]any{
			"minTLSCertDuration":     cmp.Or(options.MinTTL, time.Second).String(),
			"maxTLSCertDuration":     cmp.Or(options.MaxTTL, 24*time.Hour).String(),
			"defaultTLSCertDuration": "5m",
			"disableRenewal":         true,
		},
		"options": map[string]any{"x509": map[string]any{
			"template": cmp.Or(options.Template, ProvisionerTemplate),
		}},
	}
}
