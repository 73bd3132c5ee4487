package agent

import (
	"context"
	"crypto"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/stint-dev/stint/plugins/secret"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

const (
	requestIDBytes = 24 // 192 random bits; the API asks for 128
	cleanupTimeout = 5 * time.Second
	leaseKey       = "lease" // metadata of ALREADY_ISSUED
	leasePrefix    = "leases/"
)

// IssueOptions says how a credential is wanted. The zero value is good for most.
type IssueOptions struct {
	Parameters map[string]string // for parameters that the declaration left open
	TTL        time.Duration     // how long it should live; 0: what was granted
	Key        crypto.Signer     // for certificates: the key to certify; nil makes a new P-256 key
	DNSNames   []string          // for certificates: names to ask for, within the role
}

// Credential is what was issued: secret fields, or a certificate.
type Credential struct {
	Lease       *stintv1.Lease          // its tracking record
	Fields      map[string]secret.Value // "username", "password"; nil for certificates
	Certificate *Certificate            // nil for secrets
	Delivery    *stintv1.Delivery       // how the role wants it handed to a command; may be nil
	Clamps      []*stintv1.Clamp        // what was shortened
}

// Expires returns the end of the credential.
func (c *Credential) Expires() time.Time { return c.Lease.GetNotAfter().AsTime() }

// Wipe overwrites secret fields. A private key stays until it is collected.
func (c *Credential) Wipe() {
	for _, value := range c.Fields {
		value.Wipe()
	}
}

// Issue asks for one credential of an open task, "tasks/<ID>" or "tasks/<short name>". For a certificate it makes key and
// CSR; the key never leaves the process. Where the answer to a secret was lost on the way, the lease is revoked and the
// secret asked for anew, once.
func (c *Client) Issue(ctx context.Context, task, role string, o IssueOptions) (*Credential, error) {
	csr, key, err := c.request(ctx, role, o)
	if err != nil {
		return nil, err
	}
	req := &stintv1.IssueCredentialRequest{Task: task, Role: role, Parameters: o.Parameters, Csr: csr}
	if o.TTL > 0 {
		req.Ttl = durationpb.New(o.TTL)
	}
	answer, err := c.issueAnew(ctx, req)
	if err != nil {
		return nil, err
	}
	credential, err := assemble(answer, key)
	if err != nil {
		return nil, c.giveBack(ctx, answer.GetLease().GetName(), err)
	}
	return credential, nil
}

// request returns what has to be certified; nothing for roles that issue secrets, and for those that the caller may not
// have, where the broker says why.
func (c *Client) request(ctx context.Context, role string, o IssueOptions) (csr []byte, key crypto.Signer, err error) {
	info, err := c.Role(ctx, role)
	if errors.Is(err, &Error{Code: codes.NotFound}) || (err == nil && !info.GetNeedsCsr()) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	return newCSR(o.Key, o.DNSNames)
}

// issueAnew asks, and once more with a new request ID where the first answer was lost.
func (c *Client) issueAnew(ctx context.Context, req *stintv1.IssueCredentialRequest) (*stintv1.IssueCredentialResponse, error) {
	for retried := false; ; retried = true {
		req.RequestId = NewRequestID()
		answer, err := c.Credentials().IssueCredential(ctx, req)
		e, ok := errors.AsType[*Error](err)
		if !ok || retried || e.Reason != stintv1.Reason_REASON_ALREADY_ISSUED {
			return answer, err
		}
		name := e.Metadata[leaseKey]
		if name == "" {
			return nil, err
		}
		if !strings.HasPrefix(name, leasePrefix) {
			name = leasePrefix + name
		}
		if _, err := c.Credentials().RevokeLease(ctx, &stintv1.RevokeLeaseRequest{Name: name}); err != nil {
			return nil, fmt.Errorf("revoke %s, whose secret was lost on the way: %w", name, err)
		}
	}
}

// giveBack revokes a credential that cannot be used, and returns why.
func (c *Client) giveBack(ctx context.Context, lease string, why error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if _, err := c.Credentials().RevokeLease(ctx, &stintv1.RevokeLeaseRequest{Name: lease}); err != nil {
		return errors.Join(why, fmt.Errorf("revoke %s: %w", lease, err))
	}
	return why
}

// assemble makes the credential out of an answer. It takes the fields' memory over.
func assemble(answer *stintv1.IssueCredentialResponse, key crypto.Signer) (*Credential, error) {
	credential := &Credential{Lease: answer.GetLease(), Delivery: answer.GetDelivery(), Clamps: answer.GetClamps()}
	switch {
	case answer.GetSecret() != nil:
		fields := answer.GetSecret().GetFields()
		credential.Fields = make(map[string]secret.Value, len(fields))
		for name, value := range fields {
			credential.Fields[name] = secret.New(value)
		}
	case answer.GetCertificate() != nil:
		certificate, err := newCertificate(answer, key)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrCredential, err)
		}
		credential.Certificate = certificate
	default:
		return nil, fmt.Errorf("%w: the answer holds none", ErrCredential)
	}
	return credential, nil
}

// NewRequestID returns 192 random bits in base64url, for use as a request_id.
func NewRequestID() string {
	b := make([]byte, requestIDBytes)
	_, _ = rand.Read(b) // never fails: crypto/rand ends the process instead
	return base64.RawURLEncoding.EncodeToString(b)
}

func notFound(format string, args ...any) error {
	return &Error{Code: codes.NotFound, Reason: stintv1.Reason_REASON_NOT_FOUND, Message: fmt.Sprintf(format, args...)}
}
