package devdomain

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpccreds "google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/stint-dev/stint/attestor/peercred"
)

// securityHeader must accompany every request (SPIFFE Workload Endpoint §4), so that no other server can be tricked
// into forwarding one.
const securityHeader = "workload.spiffe.io"

// api implements the SPIFFE Workload API (SPIFFE_Workload_API.md). The socket says who asks.
type api struct {
	workload.UnimplementedSpiffeWorkloadAPIServer

	domain *Domain
}

// FetchX509SVID sends an SVID, and a new one at half of its life and whenever the authorities change.
func (s *api) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	w, err := s.caller(stream.Context())
	if err != nil {
		return err
	}
	return s.stream(stream.Context(), func(v view) (time.Duration, error) {
		resp, life, err := s.x509Response(w, v)
		if err != nil {
			return 0, err
		}
		return life / 2, stream.Send(resp) //nolint:mnd // half its life
	})
}

func (s *api) x509Response(w Workload, v view) (*workload.X509SVIDResponse, time.Duration, error) {
	svid, err := s.domain.IssueX509(X509Request{ID: w.ID, DNSNames: w.DNSNames, IPs: w.IPs})
	if err != nil {
		return nil, 0, err
	}
	certs, key, err := svid.MarshalRaw()
	if err != nil {
		return nil, 0, err
	}
	federated := make(map[string][]byte, len(v.federated))
	for _, b := range v.federated {
		federated[b.TrustDomain().IDString()] = raw(b)
	}
	leaf := svid.Certificates[0]
	s.domain.config.Logger.Debug("x509-svid issued", zap.Stringer("spiffe_id", w.ID), zap.Time("not_after", leaf.NotAfter))
	return &workload.X509SVIDResponse{
		Svids: []*workload.X509SVID{{
			SpiffeId: w.ID.String(), X509Svid: certs, X509SvidKey: key,
			Bundle: raw(v.authority.bundle(s.domain.config.TrustDomain)),
		}},
		FederatedBundles: federated,
	}, time.Until(leaf.NotAfter), nil
}

// FetchX509Bundles sends all bundles, and again whenever they change.
func (s *api) FetchX509Bundles(_ *workload.X509BundlesRequest, stream grpc.ServerStreamingServer[workload.X509BundlesResponse]) error {
	return s.stream(stream.Context(), func(v view) (time.Duration, error) {
		bundles := make(map[string][]byte)
		for _, b := range s.bundles(v) {
			bundles[b.TrustDomain().IDString()] = raw(b)
		}
		return 0, stream.Send(&workload.X509BundlesResponse{Bundles: bundles})
	})
}

// FetchJWTBundles sends the JWT keys of all bundles, and again whenever they change.
func (s *api) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream grpc.ServerStreamingServer[workload.JWTBundlesResponse]) error {
	return s.stream(stream.Context(), func(v view) (time.Duration, error) {
		bundles := make(map[string][]byte)
		for _, b := range s.bundles(v) {
			jwks, err := b.JWTBundle().Marshal()
			if err != nil {
				return 0, err
			}
			bundles[b.TrustDomain().IDString()] = jwks
		}
		return 0, stream.Send(&workload.JWTBundlesResponse{Bundles: bundles})
	})
}

// FetchJWTSVID signs a JWT-SVID for the audience that is asked for.
func (s *api) FetchJWTSVID(ctx context.Context, r *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	w, err := s.caller(ctx)
	if err != nil {
		return nil, err
	}
	if len(r.GetAudience()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "audience is missing")
	}
	if want := r.GetSpiffeId(); want != "" && want != w.ID.String() {
		return nil, status.Errorf(codes.PermissionDenied, "this socket is %s", w.ID)
	}
	token, err := s.domain.IssueJWT(JWTRequest{ID: w.ID, Audience: r.GetAudience()})
	if err != nil {
		return nil, err
	}
	return &workload.JWTSVIDResponse{Svids: []*workload.JWTSVID{{SpiffeId: w.ID.String(), Svid: token}}}, nil
}

// ValidateJWTSVID verifies a JWT-SVID of the domain or of one it federates with.
func (s *api) ValidateJWTSVID(_ context.Context, r *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	if r.GetAudience() == "" || r.GetSvid() == "" {
		return nil, status.Error(codes.InvalidArgument, "audience or svid is missing")
	}
	set := jwtbundle.NewSet()
	for _, b := range s.bundles(s.domain.view()) {
		set.Add(b.JWTBundle())
	}
	svid, err := jwtsvid.ParseAndValidate(r.GetSvid(), set, []string{r.GetAudience()})
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	claims, err := structpb.NewStruct(svid.Claims)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: svid.ID.String(), Claims: claims}, nil
}

// stream calls send at once, then after the time it returns (0: never) and whenever the domain changes.
func (s *api) stream(ctx context.Context, send func(view) (time.Duration, error)) error {
	for {
		v := s.domain.view()
		after, err := send(v)
		if err != nil {
			return err
		}
		var due <-chan time.Time
		if after > 0 {
			due = time.After(after)
		}
		select {
		case <-due:
		case <-v.changed:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
}

// caller returns the workload whose socket the request came in by.
func (s *api) caller(ctx context.Context) (Workload, error) {
	p, ok := peer.FromContext(ctx)
	if !ok || p.LocalAddr == nil {
		return Workload{}, status.Error(codes.PermissionDenied, "no identity issued")
	}
	s.domain.mu.Lock()
	defer s.domain.mu.Unlock()
	w, ok := s.domain.workloads[p.LocalAddr.String()]
	if !ok {
		return Workload{}, status.Error(codes.PermissionDenied, "no identity issued")
	}
	return w, nil
}

// bundles returns the domain's own bundle and the federated ones.
func (s *api) bundles(v view) []*spiffebundle.Bundle {
	return append([]*spiffebundle.Bundle{v.authority.bundle(s.domain.config.TrustDomain)}, v.federated...)
}

// raw is a bundle's authorities, DER one after the other.
func raw(b *spiffebundle.Bundle) []byte {
	var der []byte
	for _, cert := range b.X509Authorities() {
		der = append(der, cert.Raw...)
	}
	return der
}

func requireHeaderUnary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if err := requireHeader(ctx); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

func requireHeaderStream(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if err := requireHeader(stream.Context()); err != nil {
		return err
	}
	return next(srv, stream)
}

func requireHeader(ctx context.Context) error {
	if slices.Equal(metadata.ValueFromIncomingContext(ctx, securityHeader), []string{"true"}) {
		return nil
	}
	return status.Error(codes.InvalidArgument, "security header missing from request")
}

// credentials lets in only this process's user and root. Where the platform cannot tell, the directory's mode has to
// do alone.
func credentials(logger *zap.Logger) grpccreds.TransportCredentials {
	return sameUser{TransportCredentials: insecure.NewCredentials(), uid: os.Getuid(), logger: logger}
}

type sameUser struct {
	grpccreds.TransportCredentials

	uid    int
	logger *zap.Logger
}

// ServerHandshake refuses a peer of another user.
func (c sameUser) ServerHandshake(conn net.Conn) (net.Conn, grpccreds.AuthInfo, error) {
	local, err := peercred.Of(conn)
	switch {
	case errors.Is(err, peercred.ErrUnsupported):
	case err != nil:
		return nil, nil, err
	case local.UID != 0 && int64(local.UID) != int64(c.uid):
		c.logger.Warn("workload api refused another user", zap.Uint32("uid", local.UID), zap.Int32("pid", local.PID))
		return nil, nil, errors.New("workload api: peer is another user")
	}
	return c.TransportCredentials.ServerHandshake(conn)
}

// Clone implements the interface without losing the check.
func (c sameUser) Clone() grpccreds.TransportCredentials {
	c.TransportCredentials = c.TransportCredentials.Clone()
	return c
}
