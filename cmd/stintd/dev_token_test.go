package main

import (
	"context"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/stint-dev/stint/attestor/devdomain"
	"github.com/stint-dev/stint/attestor/x509svid"
	"github.com/stint-dev/stint/plugins/servertest"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// TestTokenListener serves listen.jwt, as an operator would configure it: a token for the broker is an identity there, one for
// somebody else is none.
func TestTokenListener(t *testing.T) {
	t.Parallel()
	d, err := openDev(t.Context(), devOptions{
		dataDir: shortDir(t), grpc: servertest.FreeAddress(t), http: servertest.FreeAddress(t), noVault: true, logLevel: "error", svidTTL: 10 * time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if failed := d.close(); failed != nil {
			t.Error(failed)
		}
	})
	d.cfg.Listen.JWT = servertest.FreeAddress(t)
	broker, caller := spiffeid.RequireFromPath(d.domain.Bundle().TrustDomain(), "/stint"), identities()[1].ID
	ctx, stop := context.WithCancel(t.Context())
	err = d.run(ctx, func(ctx context.Context) error {
		defer stop()
		conn, failed := grpc.NewClient(d.cfg.Listen.JWT, grpc.WithTransportCredentials(credentials.NewTLS(x509svid.TokenClientConfig(d.domain.Bundle(), broker))))
		if failed != nil {
			return failed
		}
		defer conn.Close()
		ask := func(audience string) (*stintv1.WhoAmIResponse, error) {
			token, unsigned := d.domain.IssueJWT(devdomain.JWTRequest{ID: caller, Audience: []string{audience}})
			if unsigned != nil {
				return nil, unsigned
			}
			return stintv1.NewTaskServiceClient(conn).WhoAmI(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token), &stintv1.WhoAmIRequest{})
		}
		who, failed := ask(broker.String())
		if failed != nil || who.GetId() != caller.String() || who.GetMethod() != "jwt-svid" {
			t.Errorf("with a token for the broker: %v, %v", who, failed)
		}
		if who, failed = ask("spiffe://dev.stint.local/other"); status.Code(failed) != codes.Unauthenticated {
			t.Errorf("with a token for somebody else: %v, %v", who, failed)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
