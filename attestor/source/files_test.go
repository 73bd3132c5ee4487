package source_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"

	"github.com/stint-dev/stint/attestor/attestortest"
	"github.com/stint-dev/stint/attestor/devdomain"
	"github.com/stint-dev/stint/attestor/source"
)

// pems are the files of an SVID.
type pems struct{ dir string }

func (p pems) config(d *devdomain.Domain) source.Files {
	return source.Files{
		Cert: filepath.Join(p.dir, "svid.pem"), Key: filepath.Join(p.dir, "key.pem"),
		Bundles:  map[spiffeid.TrustDomain]string{d.TrustDomain(): filepath.Join(p.dir, "bundle.pem")},
		Interval: 20 * time.Millisecond,
	}
}

func (p pems) write(t *testing.T, d *devdomain.Domain) {
	t.Helper()
	svid, err := d.IssueX509(devdomain.X509Request{ID: attestortest.ID(t, d, "/stint")})
	if err != nil {
		t.Fatal(err)
	}
	certs, key, err := svid.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := d.Bundle().X509Bundle().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"svid.pem": certs, "key.pem": key, "bundle.pem": bundle} {
		if err := os.WriteFile(filepath.Join(p.dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	d := attestortest.NewDomain(t, "example.org", 0)
	p := pems{dir: t.TempDir()}
	if _, err := source.OpenFiles(p.config(d)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without files: %v", err)
	}
	p.write(t, d)
	s, err := source.OpenFiles(p.config(d))
	if err != nil {
		t.Fatal(err)
	}
	first, err := s.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	if err = os.WriteFile(filepath.Join(p.dir, "key.pem"), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	reload := func() error {
		m, readErr := s.Read()
		if readErr != nil {
			return readErr
		}
		return s.Replace(m)
	}
	if err = reload(); err == nil {
		t.Error("a bad key was taken")
	}
	if kept, getErr := s.GetX509SVID(); getErr != nil || kept != first {
		t.Errorf("the old SVID is gone: %v", getErr)
	}
	if err = d.RotateCA(); err != nil {
		t.Fatal(err)
	}
	p.write(t, d)
	if err = reload(); err != nil {
		t.Fatal(err)
	}
	if next, getErr := s.GetX509SVID(); getErr != nil || next == first || len(s.Authorities()) != 2 {
		t.Errorf("not reloaded: %v", getErr)
	}
	if _, err := s.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "a"}); !errors.Is(err, source.ErrNoJWT) {
		t.Errorf("FetchJWTSVID: %v", err)
	}
}

func TestFilesAreReadWhenTheyChange(t *testing.T) {
	t.Parallel()
	d := attestortest.NewDomain(t, "example.org", 0)
	p := pems{dir: t.TempDir()}
	p.write(t, d)
	s, err := source.OpenFiles(p.config(d))
	if err != nil {
		t.Fatal(err)
	}
	attestortest.Serve(t, s.Run)
	changed := s.Changed()
	if err := d.RotateCA(); err != nil {
		t.Fatal(err)
	}
	p.write(t, d)
	select {
	case <-changed:
	case <-time.After(soon):
		t.Fatal("the new bundle was not read")
	}
}

func TestFilesNeedTheOwnBundle(t *testing.T) {
	t.Parallel()
	d := attestortest.NewDomain(t, "example.org", 0)
	p := pems{dir: t.TempDir()}
	p.write(t, d)
	config := p.config(d)
	config.Bundles = nil
	if _, err := source.OpenFiles(config); !errors.Is(err, source.ErrNoBundle) {
		t.Errorf("got %v", err)
	}
}

// TestBundlesThatCannotBeRead: whatever becomes of the file of a bundle, the one in force stays in force.
func TestBundlesThatCannotBeRead(t *testing.T) {
	t.Parallel()
	d := attestortest.NewDomain(t, "example.org", 0)
	p := pems{dir: t.TempDir()}
	p.write(t, d)
	s, err := source.OpenFiles(p.config(d))
	if err != nil {
		t.Fatal(err)
	}
	before, err := s.GetX509BundleForTrustDomain(d.TrustDomain())
	if err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(file string) error{
		"emptied": func(file string) error { return os.Truncate(file, 0) },
		"junk":    func(file string) error { return os.WriteFile(file, []byte("junk"), 0o600) },
		"cut":     func(file string) error { return os.Truncate(file, 100) },
		"gone":    os.Remove,
	} {
		p.write(t, d)
		if err := spoil(filepath.Join(p.dir, "bundle.pem")); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Read(); err == nil {
			t.Errorf("a bundle that is %s was taken", name)
		}
		if kept, err := s.GetX509BundleForTrustDomain(d.TrustDomain()); err != nil || !kept.Equal(before) {
			t.Errorf("after a bundle that is %s: %v, %v", name, kept, err)
		}
	}
}
