package main

import (
	"context"
	"fmt"

	"github.com/hashicorp/hcl/v2"

	"github.com/stint-dev/stint/broker/config"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/stepca"
	"github.com/stint-dev/stint/plugins/vault"
)

// vaultDatabase is database "NAME" { … } of a Vault: where its users can be listed.
type vaultDatabase struct {
	Name     string             `hcl:"name,label"`
	URL      config.DatabaseURL `hcl:"url"`
	Password config.SecretRef   `hcl:"password"`
	CAFile   string             `hcl:"ca_file,optional"`
	Users    config.NamePattern `hcl:"users"`
	Roles    []string           `hcl:"roles,optional"`
	Range    hcl.Range          `hcl:",def_range"`
}

// vaultDatabases makes what the plugin takes. What is wrong with a key was found before.
func vaultDatabases(backend string, blocks []vaultDatabase) ([]vault.Database, error) {
	var out []vault.Database
	first := map[string]hcl.Range{}
	for _, b := range blocks {
		if at, twice := first[b.Name]; twice {
			return nil, b.fault(backend, fmt.Sprintf("database %q stands here a second time; the first is in line %d", b.Name, at.Start.Line))
		}
		first[b.Name] = b.Range
		if err := config.CheckName(b.Name); err != nil {
			return nil, b.fault(backend, fmt.Sprintf("database %q: %v", b.Name, err))
		}
		where, err := b.URL.Parse()
		if err != nil {
			return nil, b.fault(backend, fmt.Sprintf("database %q: url: %v", b.Name, err))
		}
		out = append(out, vault.Database{
			Name: b.Name, Kind: where.Kind, Addr: where.Addr(), User: where.User, Database: where.Name,
			Password: func(context.Context) (secret.Value, error) { return b.Password.Load() },
			Plain:    !where.TLS && b.CAFile == "", CAFile: b.CAFile, Users: string(b.Users), Roles: b.Roles,
		})
	}
	return out, nil
}

func (b vaultDatabase) fault(backend, problem string) error {
	return &config.Error{Faults: []config.Fault{{File: b.Range.Filename, Line: b.Range.Start.Line, Problem: "backend " + backend + ": " + problem}}}
}

// stepcaDatabase is database { … } of a step-ca: where it keeps what it has signed.
type stepcaDatabase struct {
	URL      config.NamedDatabaseURL `hcl:"url"`
	Password config.SecretRef        `hcl:"password"`
	CAFile   string                  `hcl:"ca_file,optional"`
}

// database makes what the plugin takes; nil where there is none.
func (b stepcaBlock) database() (*stepca.Database, error) {
	if b.Database == nil {
		return nil, nil //nolint:nilnil // there may be none
	}
	where, err := b.Database.URL.Parse()
	if err != nil {
		return nil, fmt.Errorf("database: url: %w", err)
	}
	return &stepca.Database{
		Kind: where.Kind, Addr: where.Addr(), User: where.User, Database: where.Name,
		Password: func(context.Context) (secret.Value, error) { return b.Database.Password.Load() },
		Plain:    !where.TLS && b.Database.CAFile == "", CAFile: b.Database.CAFile,
	}, nil
}
