package stepca

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/internal/database"
	"github.com/stint-dev/stint/plugins/secret"
)

// Mode says where the certificate authority runs.
type Mode string

// The modes.
const (
	// Embedded signs in this process.
	Embedded Mode = "embedded"
	// Remote asks a step-ca.
	Remote Mode = "remote"
)

// Defaults of a Config.
const (
	DefaultCRLValidity       = time.Minute
	DefaultRemoteCRLValidity = 24 * time.Hour // step-ca's own default
	DefaultMaxTTL            = 24 * time.Hour
)

// Config sets up a Backend. Exactly the part of its Mode is read of Embedded and Remote.
type Config struct {
	// Instance is the backend's name, such as stepca/internal.
	Instance string
	// Mode is embedded if empty.
	Mode Mode
	// TaskTrustDomain is the trust domain of issued certificates, such as tasks.example.org.
	TaskTrustDomain string
	// ExtensionArc is a private enterprise arc in dotted decimal; DefaultArc if empty.
	ExtensionArc string
	// CRLURL is the distribution point in each certificate, http or https. Empty leaves it out. A step-ca names its CRL in
	// the CRL itself, and then OpenSSL wants the same URL here (crl.idpURL of ca.json).
	CRLURL string
	// CRLValidity is the time from a CRL's making to its nextUpdate, and most of the exposure. In remote mode step-ca
	// decides (crl.cacheDuration), and this must say the same; Check compares.
	CRLValidity time.Duration
	// MaxTTL is the longest life that is signed; 24 h if zero. In remote mode it must not be above step-ca's
	// maxTLSCertDuration.
	MaxTTL time.Duration

	Embedded EmbeddedConfig
	Remote   RemoteConfig
}

// EmbeddedConfig is an embedded CA's own part.
type EmbeddedConfig struct {
	// DataDir holds crl.der, the list of what was signed, and the CA's key and certificate when it makes its own. Made with
	// mode 0700. Only one process may use it at a time; the caller sees to that.
	DataDir string
	// IssuerCert is an operator's own CA in PEM, the one that signs first, then further intermediates. Empty makes a root.
	IssuerCert []byte
	// IssuerKey is its key in PEM, unencrypted: PKCS #8, PKCS #1 or SEC 1.
	IssuerKey secret.Value
	// IssuerRoots are the roots above it in PEM. May be empty only when IssuerCert is self-signed.
	IssuerRoots []byte
}

// RemoteConfig is a step-ca's own part.
type RemoteConfig struct {
	// URL is where step-ca serves: https://ca.example.org. Tokens name it as their audience.
	URL string
	// RootPEM are the roots that its TLS certificate, and what it issues, must chain to.
	RootPEM []byte
	// Provisioner is the name of the JWK provisioner.
	Provisioner string
	// Key is the provisioner's private key, a JWK with kid (RFC 7517).
	Key secret.Value
	// DataDir holds the list of what step-ca was asked to sign. Made with mode 0700. Two instances may use it, where one
	// replaces the other.
	DataDir string
	// Database is step-ca's own, where it is of a kind that can be asked: what it has signed for others is in it. Nil: not known.
	Database *Database
}

// Database is where the database of a step-ca is, and as whom to log in: who may read the table x509_certs.
type Database = database.Config

// settings is a checked Config.
type settings struct {
	Config

	domain spiffeid.TrustDomain
	arc    arcIDs
	// rename is os.Rename: the moment at which a file that was written counts, where tests end the process.
	rename func(from, to string) error
	// sync is os.File.Sync: the moment at which lines that were appended count, the same.
	sync func(*os.File) error
}

// errConfig begins every error about a Config.
var errConfig = errors.New("stepca configuration")

func (c Config) check() (settings, error) {
	c.Mode = cmp.Or(c.Mode, Embedded)
	c.MaxTTL = cmp.Or(c.MaxTTL, DefaultMaxTTL)
	if c.CRLValidity == 0 {
		c.CRLValidity = DefaultCRLValidity
		if c.Mode == Remote {
			c.CRLValidity = DefaultRemoteCRLValidity
		}
	}
	s := settings{Config: c, rename: os.Rename, sync: (*os.File).Sync}
	var faults []error
	var err error
	if s.domain, err = spiffeid.TrustDomainFromString(c.TaskTrustDomain); err != nil {
		faults = append(faults, fmt.Errorf("task trust domain: %w", err))
	}
	if s.arc, err = parseArc(c.ExtensionArc); err != nil {
		faults = append(faults, err)
	}
	if c.Mode != Embedded && c.Mode != Remote {
		faults = append(faults, fmt.Errorf("mode is %q; known are embedded, remote", c.Mode))
	}
	if c.CRLURL != "" && !isURL(c.CRLURL, "http", "https") {
		faults = append(faults, fmt.Errorf("crl_url %q is no http or https URL", c.CRLURL))
	}
	if c.CRLValidity < 3*time.Second || c.MaxTTL < time.Second {
		faults = append(faults, fmt.Errorf("CRL validity %s or max TTL %s is too short", c.CRLValidity, c.MaxTTL))
	}
	if len(faults) > 0 {
		return settings{}, fmt.Errorf("%w: %w: %w", plugins.ErrMisconfigured, errConfig, errors.Join(faults...))
	}
	return s, nil
}

// isURL reports whether text is an absolute URL with a host and one of the schemes.
func isURL(text string, schemes ...string) bool {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return false
	}
	return slices.Contains(schemes, u.Scheme)
}
