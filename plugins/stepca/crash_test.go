package stepca

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/smallstep/certificates/cas/apiv1"
	"go.uber.org/zap"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
)

const (
	// crashDir and crashStep tell the child where its CA is, and at which of its steps it dies.
	crashDir  = "STINT_STEPCA_CRASH_DIR"
	crashStep = "STINT_STEPCA_CRASH_STEP"
)

// TestKilledAtEveryStep kills a process with SIGKILL at every step of an embedded CA: at each file that its starts write, at
// each line about what it signs and at each CRL that a revocation signs, before and after. The next start finishes what was cut off: it is the same CA once one
// was started, every certificate that it handed out is in its list, every revocation that was acknowledged is on its CRL, and no CRL has the number of one that may have been read.
func TestKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	if dir := os.Getenv(crashDir); dir != "" {
		crashChild(t, dir)
		return
	}
	want := []string{
		"CRL signed", "CRL unsigned", "crl.der in place", "crl.der written",
		"crl.der.damaged- in place", "crl.der.damaged- written", "line appended", "line on disk", "since in place", "since written",
	}
	for name, c := range map[string]struct {
		prepare func(t *testing.T, dir string)
		files   []string
	}{
		"a CA of its own":       {func(*testing.T, string) {}, []string{"ca.crt in place", "ca.crt written", "ca.key in place", "ca.key written"}},
		"the operator's own CA": {writeOperators, []string{"issuer.crt in place", "issuer.crt written"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			steps := map[string]bool{}
			for n := 1; ; n++ {
				dir := t.TempDir()
				c.prepare(t, dir)
				said := killAtStep(t, dir, n)
				if said.step == "" {
					break
				}
				steps[said.step] = true
				t.Run(fmt.Sprintf("%d, %s", n, said.step), func(t *testing.T) { said.startAgain(t, dir) })
			}
			var died []string
			for step := range steps {
				died = append(died, step)
			}
			slices.Sort(died)
			if all := slices.Sorted(slices.Values(append(c.files, want...))); !slices.Equal(died, all) {
				t.Errorf("processes were killed at %q, not at %q", died, all)
			}
		})
	}
}

// writeOperators writes an operator's CA for a process that is killed and for the one after it.
func writeOperators(t *testing.T, dir string) {
	t.Helper()
	p := newPKI(t)
	for name, text := range map[string][]byte{"issuer.pem": p.cert, "issuer.key": p.key, "roots.pem": p.root} {
		must(t, os.WriteFile(filepath.Join(dir, name), text, 0o600))
	}
}

// crashConfig is the configuration of both, with the operator's CA if there is one.
func crashConfig(t *testing.T, dir string) Config {
	t.Helper()
	cfg := embeddedConfig(filepath.Join(dir, "ca"))
	read := func(name string) []byte {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return text
	}
	if cert := read("issuer.pem"); cert != nil {
		cfg.Embedded.IssuerCert, cfg.Embedded.IssuerKey, cfg.Embedded.IssuerRoots = cert, secret.New(read("issuer.key")), read("roots.pem")
	}
	return cfg
}

// said is what a process told before it was killed.
type said struct {
	step    string // at which it died; "" where it came to its end
	root    string // of a CA that was started
	number  *big.Int
	issued  []plugins.LeaseID // handed out
	revoked []plugins.LeaseID // acknowledged
	damaged bool              // its CRL was, after all that
}

// killAtStep runs a process that dies at its nth step, unless it has fewer.
func killAtStep(t *testing.T, dir string, n int) said {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.CommandContext(t.Context(), self, "-test.run=^TestKilledAtEveryStep$", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), crashDir+"="+dir, crashStep+"="+strconv.Itoa(n))
	out, err := cmd.Output()
	status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if killed := status.Signaled() && status.Signal() == syscall.SIGKILL; err != nil && !killed {
		t.Fatalf("the child failed by itself: %v\n%s", err, out)
	}
	s := said{number: new(big.Int)}
	for line := range strings.Lines(string(out)) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch word {
		case "step":
			s.step = rest
		case "root":
			s.root = rest
		case "number":
			s.number.SetString(rest, 10)
		case "issued":
			s.issued = append(s.issued, leaseNamed(t, rest))
		case "revoked":
			s.revoked = append(s.revoked, leaseNamed(t, rest))
		case "damaged":
			s.revoked, s.damaged = nil, true
		}
	}
	if (err == nil) != (s.step == "") {
		t.Fatalf("the child ended with %v, at step %q", err, s.step)
	}
	return s
}

func leaseNamed(t *testing.T, text string) plugins.LeaseID {
	t.Helper()
	lease, err := leaseOf(plugins.Held{Handle: plugins.Handle(text)})
	must(t, err)
	return lease
}

// startAgain starts the CA where a process was killed.
func (s said) startAgain(t *testing.T, dir string) {
	t.Helper()
	cfg := crashConfig(t, dir)
	if der, err := os.ReadFile(filepath.Join(cfg.Embedded.DataDir, crlFile)); err == nil && Begun(cfg.Embedded.DataDir) {
		list, err := x509.ParseRevocationList(der)
		if err == nil && list.Number.Cmp(s.number) > 0 {
			s.number = list.Number // it may have been served
		}
	}
	for range 2 { // what the first start finishes, the second finds
		b, err := New(cfg, zap.NewNop())
		if err != nil {
			t.Fatalf("the next start: %v", err)
		}
		s.check(t, b)
		if left, _ := filepath.Glob(filepath.Join(cfg.Embedded.DataDir, ".*")); len(left) > 0 {
			t.Errorf("the start leaves %q", left)
		}
		req := newRequest(t)
		cred, _ := issue(t, b, req)
		works := accepts(t, b)(t.Context(), cred)
		if _, err := b.Revoke(t.Context(), held(req, cred)); err != nil || !works || accepts(t, b)(t.Context(), cred) {
			t.Errorf("a certificate is accepted before it is revoked: %t; revoking it says %v", works, err)
		}
		s.root, s.number, s.revoked, s.issued = rootOf(b), b.current(t).number, append(s.revoked, req.Lease), append(s.issued, req.Lease)
	}
}

func (s said) check(t *testing.T, b *Backend) {
	t.Helper()
	c := b.current(t)
	if c.number.Cmp(s.number) <= 0 {
		t.Errorf("CRL %s follows CRL %s", c.number, s.number)
	}
	for _, lease := range s.revoked {
		if !c.holds(lease) {
			t.Errorf("the revocation of %s was acknowledged and is not on CRL %s", lease, c.number)
		}
	}
	list, faults := listed(t, b)
	for _, lease := range s.issued {
		if _, ok := list[lease]; !ok {
			t.Errorf("%s was handed out and is not in the list", lease)
		}
	}
	for _, err := range faults { // an operator's CA may have signed before
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("the list ends with %v", err)
		}
	}
	if s.root != "" && s.root != rootOf(b) {
		t.Error("it is another CA")
	}
	if err := b.Healthy(t.Context()); errors.Is(err, plugins.ErrMisconfigured) != s.damaged {
		t.Errorf("revocations were lost: %t; healthy says %v", s.damaged, err)
	}
}

func rootOf(b *Backend) string { return fmt.Sprintf("%x", sha256.Sum256(b.Bundle()[0])) }

// mortal is a process that dies at one of its steps.
type mortal struct {
	left int // steps, with that one
}

func (m *mortal) step(name string) {
	if m.left--; m.left > 0 {
		return
	}
	say("step", name)
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // until the signal arrives
}

// rename is os.Rename between two steps.
func (m *mortal) rename(from, to string) error {
	name := strings.TrimRight(filepath.Base(to), "0123456789")
	m.step(name + " written")
	err := os.Rename(from, to)
	m.step(name + " in place")
	return err
}

// sync is os.File.Sync between two steps.
func (m *mortal) sync(f *os.File) error {
	m.step("line appended")
	err := f.Sync()
	m.step("line on disk")
	return err
}

// mortalSigner signs between two steps.
type mortalSigner struct {
	apiv1.CertificateAuthorityCRLGenerator

	m *mortal
}

func (s mortalSigner) CreateCRL(req *apiv1.CreateCRLRequest) (*apiv1.CreateCRLResponse, error) {
	s.m.step("CRL unsigned")
	signed, err := s.CertificateAuthorityCRLGenerator.CreateCRL(req)
	s.m.step("CRL signed")
	return signed, err
}

// say tells the parent.
func say(word, rest string) { _, _ = fmt.Fprintf(os.Stdout, "%s %s\n", word, rest) }

// start is New with steps.
func (m *mortal) start(t *testing.T, dir string) *Backend {
	t.Helper()
	s, err := crashConfig(t, dir).check()
	must(t, err)
	s.rename, s.sync = m.rename, m.sync
	ca, err := openEmbedded(&s, zap.NewNop())
	must(t, err)
	ca.revoked.signer = mortalSigner{ca.revoked.signer, m}
	b := &Backend{settings: &s, ca: ca, health: ca, lapses: keepExpired}
	say("root", rootOf(b))
	say("number", b.current(t).number.String())
	return b
}

// crashChild is the process that TestKilledAtEveryStep kills: a first start, one on a CRL that is there, and one on a CRL that
// is damaged, each with a revocation.
func crashChild(t *testing.T, dir string) {
	t.Helper()
	n, err := strconv.Atoi(os.Getenv(crashStep))
	must(t, err)
	m := &mortal{left: n}
	for range 2 {
		m.revoke(t, m.start(t, dir))
	}
	must(t, os.Truncate(filepath.Join(dir, "ca", crlFile), 100))
	say("damaged", "")
	m.revoke(t, m.start(t, dir))
}

// revoke issues a certificate and revokes it.
func (*mortal) revoke(t *testing.T, b *Backend) {
	t.Helper()
	req := newRequest(t)
	cred, _ := issue(t, b, req)
	say("issued", req.Lease.String())
	_, err := b.Revoke(t.Context(), held(req, cred))
	must(t, err)
	say("number", b.current(t).number.String())
	say("revoked", req.Lease.String())
}
