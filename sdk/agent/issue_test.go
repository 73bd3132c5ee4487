package agent_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"testing"
	"time"

	"google.golang.org/grpc"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
	"github.com/stint-dev/stint/sdk/agent/agenttest"
)

// tamper changes answers to IssueCredential on their way.
func tamper(change func(*stintv1.IssueCredentialResponse)) agent.Option {
	return agent.WithDialOptions(grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			err := invoke(ctx, method, req, reply, conn, opts...)
			if answer, ok := reply.(*stintv1.IssueCredentialResponse); ok && err == nil {
				change(answer)
			}
			return err
		}))
}

// selfSigned returns the certificate of an authority that signed nothing.
func selfSigned(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestCredentialsThatDoNotFitAreGivenBack(t *testing.T) {
	t.Parallel()
	stranger := selfSigned(t)
	for name, change := range map[string]func(*stintv1.IssueCredentialResponse){
		"another bundle": func(a *stintv1.IssueCredentialResponse) {
			a.GetCertificate().Bundle = [][]byte{stranger}
		},
		"no bundle": func(a *stintv1.IssueCredentialResponse) { a.GetCertificate().Bundle = nil },
		"no chain":  func(a *stintv1.IssueCredentialResponse) { a.GetCertificate().Chain = nil },
		"another key": func(a *stintv1.IssueCredentialResponse) {
			a.GetCertificate().Chain = a.GetCertificate().GetBundle()
		},
		"no certificate":  func(a *stintv1.IssueCredentialResponse) { a.GetCertificate().Chain = [][]byte{{1, 2, 3}} },
		"nothing":         func(a *stintv1.IssueCredentialResponse) { a.Credential = nil },
		"a foreign lease": func(a *stintv1.IssueCredentialResponse) { a.Lease.Name = "leases/0" },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := agenttest.Start(t, agenttest.Config{})
			client := connect(t, b, tamper(change))
			task := declare(t, client, agent.Declaration{})
			_, err := task.Issue(t.Context(), "ledger-api", agent.IssueOptions{})
			if !errors.Is(err, agent.ErrCredential) {
				t.Fatalf("error %v", err)
			}
			if got := b.Leases()[0].GetState(); name != "a foreign lease" && got != stintv1.LeaseState_LEASE_STATE_REVOKED {
				t.Errorf("the lease is %s", got)
			}
		})
	}
}

func TestCertificate(t *testing.T) {
	t.Parallel()
	b := agenttest.Start(t, agenttest.Config{})
	task := declare(t, connect(t, b), agent.Declaration{})
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c, err := task.Issue(t.Context(), "ledger-api", agent.IssueOptions{Key: key, DNSNames: []string{"eu1.example.org"}})
	if err != nil {
		t.Fatal(err)
	}
	cert := c.Certificate
	if !key.PublicKey.Equal(cert.PrivateKey.Public()) || cert.Chain[0].DNSNames[0] != "eu1.example.org" || cert.SPIFFEID != cert.Chain[0].URIs[0].String() {
		t.Errorf("certificate for %v, %s", cert.Chain[0].DNSNames, cert.SPIFFEID)
	}
	pemKey, err := cert.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair(cert.ChainPEM(), pemKey.Expose()); err != nil {
		t.Errorf("PEM: %v", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(cert.BundlePEM()) || !pool.Equal(cert.Roots()) {
		t.Error("the bundle's PEM is not the bundle")
	}
	if block, _ := pem.Decode(pemKey.Expose()); block == nil || block.Type != "PRIVATE KEY" {
		t.Error("the key is not PKCS#8")
	}
	if got := fmt.Sprintf("%v %+v %#v", pemKey, c.Fields, pemKey); len(got) > 200 {
		t.Errorf("a secret was printed: %d bytes", len(got))
	}
}

func TestManifestMismatchClosesTheTask(t *testing.T) {
	t.Parallel()
	b := agenttest.Start(t, agenttest.Config{})
	client := connect(t, b, agent.WithDialOptions(grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			if declaration, ok := req.(*stintv1.DeclareTaskRequest); ok {
				declaration.Description = "something else"
			}
			return invoke(ctx, method, req, reply, conn, opts...)
		})))
	_, err := client.Declare(t.Context(), agent.Declaration{Purpose: "reconcile-invoices", TTL: 60e9})
	if !errors.Is(err, agent.ErrManifest) {
		t.Fatalf("error %v", err)
	}
	if got := b.Task().GetCloseReason(); got != stintv1.CloseReason_CLOSE_REASON_CANCELLED {
		t.Errorf("the task was closed as %s", got)
	}
}
