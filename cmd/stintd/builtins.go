package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"go.uber.org/zap"

	"github.com/stint-dev/stint/broker/config"
	"github.com/stint-dev/stint/broker/instance"
	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/stepca"
	"github.com/stint-dev/stint/plugins/vault"
)

// surroundings is what a plugin may need of the daemon.
type surroundings struct {
	cfg *config.Config
	// jwt fetches the daemon's own JWT-SVIDs; nil where there is no identity yet, as in an offline check.
	jwt    jwtsvid.Source
	logger *zap.Logger
}

// builtin makes a backend from its block of the configuration.
type builtin struct {
	name string
	open func(block config.Backend, s surroundings) (plugins.Backend, error)
}

// builtins is the only list of concrete plugins.
func builtins() []builtin {
	return []builtin{
		{name: "stepca", open: openStepCA},
		{name: "vault", open: openVault},
	}
}

// builtinNames lists the plugins for the configuration, which refuses any other.
func builtinNames() []string {
	names := make([]string, 0, len(builtins()))
	for _, b := range builtins() {
		names = append(names, b.name)
	}
	return names
}

// inOrder makes a snapshot of opened backends in the order of the configuration, whose first CA is the one that is published.
func inOrder(cfg *config.Config, opened map[string]plugins.Backend) *instance.Snapshot {
	all := make([]instance.Instance, 0, len(cfg.Backends))
	for _, block := range cfg.Backends {
		all = append(all, instance.Instance{Name: block.ID(), Backend: opened[block.ID()]})
	}
	return instance.New(all...)
}

// openBackends makes every configured backend, or says everything that is wrong with them.
func openBackends(s surroundings) (map[string]plugins.Backend, []error) {
	out := make(map[string]plugins.Backend, len(s.cfg.Backends))
	var faults []error
	for _, block := range s.cfg.Backends {
		for _, b := range builtins() {
			if b.name != block.Type {
				continue
			}
			backend, err := b.open(block, s)
			if err != nil {
				faults = append(faults, named("backend "+block.ID(), err)...)
				continue
			}
			out[block.ID()] = backend
		}
	}
	return out, faults
}

// named puts a name in front of each of several errors, unless it already stands there.
func named(name string, err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, one := range joined.Unwrap() {
			out = append(out, named(name, one)...)
		}
		return out
	}
	if strings.Contains(err.Error(), name+": ") {
		return []error{err}
	}
	return []error{fmt.Errorf("%s: %w", name, err)}
}

// keepsState says whether a backend has state on disk that only one instance may write: an embedded CA's CRL. The list of what
// was signed may be written by two.
func keepsState(block config.Backend) bool {
	var b stepcaBlock
	return block.Type == "stepca" && config.DecodeBackend(block, &b) == nil && stepca.Mode(b.Mode) != stepca.Remote
}

// needsIdentity says whether a backend can be asked only with the daemon's own SVID.
func needsIdentity(block config.Backend) bool {
	var v vaultBlock
	return block.Type == "vault" && config.DecodeBackend(block, &v) == nil &&
		slices.ContainsFunc(v.Auth, func(a vaultAuth) bool { return a.Kind == "jwt" })
}

// vaultBlock is what stands in backend "vault" "NAME" { … }.
type vaultBlock struct {
	Address            string          `hcl:"address"`
	CAFile             string          `hcl:"ca_file,optional"`
	Namespace          string          `hcl:"namespace,optional"`
	TokenRole          string          `hcl:"token_role,optional"`
	MaxRequestDuration config.Duration `hcl:"max_request_duration,optional"`
	RequestTimeout     config.Duration `hcl:"request_timeout,optional"`
	Auth               []vaultAuth     `hcl:"auth,block"`
	Databases          []vaultDatabase `hcl:"database,block"`
}

// vaultAuth is auth "jwt" { … }, auth "approle" { … } or auth "token" { … }.
type vaultAuth struct {
	Kind string   `hcl:"kind,label"`
	Body hcl.Body `hcl:",remain"`
}

func openVault(block config.Backend, s surroundings) (plugins.Backend, error) {
	var v vaultBlock
	if err := config.DecodeBackend(block, &v); err != nil {
		return nil, err
	}
	if len(v.Auth) != 1 {
		return nil, fmt.Errorf(`%d auth blocks; write one of auth "jwt", auth "approle", auth "token"`, len(v.Auth))
	}
	auth, err := vaultLogin(v.Auth[0], s)
	if err != nil {
		return nil, err
	}
	databases, err := vaultDatabases(block.ID(), v.Databases)
	if err != nil {
		return nil, err
	}
	return vault.New(vault.Config{
		Instance: block.ID(), Address: v.Address, CAFile: v.CAFile, Namespace: v.Namespace, TokenRole: v.TokenRole,
		MaxRequestDuration: v.MaxRequestDuration.Value(), RequestTimeout: v.RequestTimeout.Value(), Auth: auth,
		Databases: databases,
	}, s.logger)
}

func vaultLogin(a vaultAuth, s surroundings) (vault.Auth, error) {
	name := `auth "` + a.Kind + `"`
	switch a.Kind {
	case "jwt":
		var b struct {
			Mount    string `hcl:"mount,optional"`
			Role     string `hcl:"role"`
			Audience string `hcl:"audience"`
		}
		b.Mount = "jwt"
		if err := config.DecodeBlock(name, a.Body, &b); err != nil {
			return vault.Auth{}, err
		}
		return vault.Auth{JWT: &vault.JWTAuth{Mount: b.Mount, Role: b.Role, Audience: b.Audience, Source: jwtFrom(s.jwt)}}, nil
	case "approle":
		var b struct {
			Mount    string           `hcl:"mount,optional"`
			RoleID   string           `hcl:"role_id"`
			SecretID config.SecretRef `hcl:"secret_id"`
		}
		if err := config.DecodeBlock(name, a.Body, &b); err != nil {
			return vault.Auth{}, err
		}
		load := func(context.Context) (secret.Value, error) { return b.SecretID.Load() }
		return vault.Auth{AppRole: &vault.AppRoleAuth{Mount: b.Mount, RoleID: b.RoleID, SecretID: load}}, nil
	case "token":
		var b struct {
			File string `hcl:"file"`
		}
		if err := config.DecodeBlock(name, a.Body, &b); err != nil {
			return vault.Auth{}, err
		}
		return vault.Auth{Token: &vault.TokenAuth{File: b.File}}, nil
	default:
		return vault.Auth{}, fmt.Errorf("%s: unknown kind; there are jwt, approle, token", name)
	}
}

// jwtFrom fetches the daemon's own JWT-SVID anew for each login.
func jwtFrom(source jwtsvid.Source) func(context.Context, string) (secret.Value, error) {
	return func(ctx context.Context, audience string) (secret.Value, error) {
		if source == nil {
			return secret.Value{}, fmt.Errorf("no source of JWT-SVIDs: %w", plugins.ErrMisconfigured)
		}
		svid, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
		if err != nil {
			return secret.Value{}, fmt.Errorf("fetch own JWT-SVID: %w", err)
		}
		return secret.FromString(svid.Marshal()), nil
	}
}

// stepcaBlock is what stands in backend "stepca" "NAME" { … }.
type stepcaBlock struct {
	Mode         string           `hcl:"mode,optional"`
	CRLURL       string           `hcl:"crl_url,optional"`
	CRLValidity  config.Duration  `hcl:"crl_validity,optional"`
	MaxTTL       config.Duration  `hcl:"max_ttl,optional"`
	ExtensionArc string           `hcl:"extension_arc,optional"`
	IssuerCert   string           `hcl:"issuer_cert,optional"`
	IssuerKey    config.SecretRef `hcl:"issuer_key,optional"`
	IssuerRoots  string           `hcl:"issuer_roots,optional"`
	URL          string           `hcl:"url,optional"`
	RootFile     string           `hcl:"root_file,optional"`
	Provisioner  string           `hcl:"provisioner,optional"`
	Key          config.SecretRef `hcl:"key,optional"`
	Database     *stepcaDatabase  `hcl:"database,block"`
}

var errDatabaseEmbedded = errors.New("database: an embedded CA has none; it is for mode = \"remote\"")

func openStepCA(block config.Backend, s surroundings) (plugins.Backend, error) {
	var b stepcaBlock
	if err := config.DecodeBackend(block, &b); err != nil {
		return nil, err
	}
	cfg := stepca.Config{
		Instance: block.ID(), Mode: stepca.Mode(b.Mode), TaskTrustDomain: s.cfg.TaskTrustDomain.Name(),
		ExtensionArc: b.ExtensionArc, CRLURL: b.CRLURL, CRLValidity: b.CRLValidity.Value(), MaxTTL: b.MaxTTL.Value(),
	}
	var err error
	if cfg.Mode == stepca.Remote {
		cfg.Remote, err = b.remote(caDir(s.cfg, block))
	} else {
		cfg.Embedded, err = b.embedded(caDir(s.cfg, block))
	}
	if err != nil {
		return nil, err
	}
	return stepca.New(cfg, s.logger)
}

// caDir is where a CA's list of what it has signed is, and where an embedded one keeps its key and its CRL.
func caDir(cfg *config.Config, block config.Backend) string {
	return filepath.Join(cfg.DataDir, "ca", block.Name)
}

func (b stepcaBlock) remote(dir string) (stepca.RemoteConfig, error) {
	root, rootErr := readPEM("root_file", b.RootFile)
	key, keyErr := loadRef("key", b.Key)
	db, dbErr := b.database()
	return stepca.RemoteConfig{
		URL: b.URL, RootPEM: root, Provisioner: b.Provisioner, Key: key, DataDir: dir, Database: db,
	}, errors.Join(rootErr, keyErr, dbErr)
}

func (b stepcaBlock) embedded(dir string) (stepca.EmbeddedConfig, error) {
	cfg := stepca.EmbeddedConfig{DataDir: dir}
	if b.Database != nil {
		return cfg, errDatabaseEmbedded
	}
	if b.IssuerCert == "" {
		return cfg, nil
	}
	var certErr, rootsErr, keyErr error
	cfg.IssuerCert, certErr = readPEM("issuer_cert", b.IssuerCert)
	if b.IssuerRoots != "" {
		cfg.IssuerRoots, rootsErr = readPEM("issuer_roots", b.IssuerRoots)
	}
	cfg.IssuerKey, keyErr = loadRef("issuer_key", b.IssuerKey)
	return cfg, errors.Join(certErr, rootsErr, keyErr)
}

func readPEM(key, path string) ([]byte, error) {
	if path == "" {
		return nil, fmt.Errorf("%s is missing", key)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	return raw, nil
}

func loadRef(key string, ref config.SecretRef) (secret.Value, error) {
	if ref == "" {
		return secret.Value{}, fmt.Errorf("%s is missing", key)
	}
	v, err := ref.Load()
	if err != nil {
		return v, fmt.Errorf("%s: %w", key, err)
	}
	return v, nil
}
