// Command stockgo is a client that knows nothing of Stint but its proto files: go-spiffe for the identity, grpc-go for
// the call. It declares a task, gets a certificate for a key of its own, completes the task, and prints the task's state
// and the certificates in PEM, the leaf first and the roots last.
//
//	stockgo ADDRESS SERVER-SPIFFE-ID PURPOSE ROLE
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/durationpb"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := run(ctx, os.Args[1], os.Args[2], os.Args[3], os.Args[4]); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, addr, server, purpose, role string) error {
	id, err := spiffeid.FromString(server)
	if err != nil {
		return err
	}
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(credentials.NewTLS(
		tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(id)))))
	if err != nil {
		return err
	}
	defer conn.Close()

	tasks := stintv1.NewTaskServiceClient(conn)
	declared, err := tasks.DeclareTask(ctx, &stintv1.DeclareTaskRequest{
		Purpose: purpose, Roles: []*stintv1.RoleRequest{{Role: role}}, RequestId: rand.Text(),
	})
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	issued, err := stintv1.NewCredentialServiceClient(conn).IssueCredential(ctx, &stintv1.IssueCredentialRequest{
		Task: declared.GetTask().GetName(), Role: role, Csr: csr, RequestId: rand.Text(),
	})
	if err != nil {
		return err
	}
	completed, err := tasks.CompleteTask(ctx, &stintv1.CompleteTaskRequest{
		Name: declared.GetTask().GetName(), Outcome: stintv1.CloseReason_CLOSE_REASON_COMPLETED, Wait: durationpb.New(20 * time.Second),
	})
	if err != nil {
		return err
	}
	fmt.Println(completed.GetTask().GetState(), completed.GetTask().GetCloseReason(), issued.GetLease().GetName())
	certificate := issued.GetCertificate()
	for _, der := range append(certificate.GetChain(), certificate.GetBundle()...) {
		if err := pem.Encode(os.Stdout, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			return err
		}
	}
	return nil
}
