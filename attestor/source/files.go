package source

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/zap"
)

const defaultInterval = 5 * time.Second

// Files names the files of an SVID and of the bundles, as spiffe-helper writes them. Replace key and certificate
// together (one symlink swap): a pair that does not match is not taken, and the old one stays.
type Files struct {
	Cert string // PEM: the SVID, then its intermediates
	Key  string // PEM, PKCS#8
	// Bundles holds a PEM file of X.509 authorities for each trust domain. That of the own SVID is required.
	Bundles map[spiffeid.TrustDomain]string
	// JWTBundles holds a JWKS file for each trust domain whose JWT-SVIDs are accepted; may be nil.
	JWTBundles map[spiffeid.TrustDomain]string
	// Interval is how often the files are read again; 0 means 5 s.
	Interval time.Duration
	// Logger takes what happens later; nil is silent.
	Logger *zap.Logger
}

// FileSource is a [Source] from files, which can be told to read them now.
type FileSource struct {
	*Source

	files *files
}

// OpenFiles returns a source that has read its files. Run reads them again when they change.
func OpenFiles(config Files) (*FileSource, error) {
	if config.Interval <= 0 {
		config.Interval = defaultInterval
	}
	if config.Logger == nil {
		config.Logger = zap.NewNop()
	}
	f := &files{config: config, source: new(Source)}
	for td := range config.Bundles {
		f.source.trust = append(f.source.trust, td)
	}
	f.source.feed = f
	if err := f.load(); err != nil {
		return nil, err
	}
	own := f.source.ID().TrustDomain()
	if _, ok := config.Bundles[own]; !ok {
		return nil, fmt.Errorf("%w for %s, the trust domain of %s", ErrNoBundle, own.Name(), config.Cert)
	}
	return &FileSource{Source: f.source, files: f}, nil
}

// Read reads the files now, as on SIGHUP, and returns what they hold for Replace.
func (s *FileSource) Read() (Material, error) { return s.files.read() }

// files is the feed of a source from files.
type files struct {
	config Files
	source *Source
}

// load reads everything and takes all of it or nothing.
func (f *files) load() error {
	material, err := f.read()
	if err != nil {
		return err
	}
	return f.source.Replace(material)
}

// read reads everything and takes nothing.
func (f *files) read() (Material, error) {
	svid, err := x509svid.Load(f.config.Cert, f.config.Key)
	if err != nil {
		return Material{}, fmt.Errorf("read svid %s: %w", f.config.Cert, err)
	}
	material := Material{SVID: svid, X509: x509bundle.NewSet(), JWT: jwtbundle.NewSet()}
	for td, path := range f.config.Bundles {
		b, err := x509bundle.Load(td, path)
		if err != nil {
			return Material{}, fmt.Errorf("read bundle %s: %w", path, err)
		}
		if b.Empty() { // as while it is being written; taken, it would cut everybody
			return Material{}, fmt.Errorf("read bundle %s: %w: it holds no certificate", path, ErrNoBundle)
		}
		material.X509.Add(b)
	}
	for td, path := range f.config.JWTBundles {
		b, err := jwtbundle.Load(td, path)
		if err != nil {
			return Material{}, fmt.Errorf("read bundle %s: %w", path, err)
		}
		material.JWT.Add(b)
	}
	return material, nil
}

// run looks at the content of the files, not at their times, which a symlink swap does not change.
func (f *files) run(ctx context.Context) error {
	ticker := time.NewTicker(f.config.Interval)
	defer ticker.Stop()
	var seen []byte
	for {
		now := f.digest()
		if !bytes.Equal(now, seen) {
			f.report(f.load())
		}
		seen = now
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// report keeps and logs how a load went.
func (f *files) report(err error) {
	if err == nil {
		f.source.fault.Store(nil)
		f.config.Logger.Info("svid and bundles read", zap.Stringer("spiffe_id", f.source.ID()))
		return
	}
	f.source.fault.Store(&err)
	f.config.Logger.Warn("svid and bundles not taken; the old ones stay", zap.Error(err))
}

// digest is a hash of all the files; one that cannot be read counts as its error.
func (f *files) digest() []byte {
	paths := []string{f.config.Cert, f.config.Key}
	for _, set := range []map[spiffeid.TrustDomain]string{f.config.Bundles, f.config.JWTBundles} {
		for _, path := range set {
			paths = append(paths, path)
		}
	}
	slices.Sort(paths)
	h := sha256.New()
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			content = []byte(err.Error())
		}
		sum := sha256.Sum256(content)
		h.Write(sum[:])
	}
	return h.Sum(nil)
}

func (*files) fetchJWT(context.Context, jwtsvid.Params) (*jwtsvid.SVID, error) { return nil, ErrNoJWT }

func (*files) close() error { return nil }
