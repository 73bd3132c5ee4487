package acceptance_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// Done when (2): a stock go-spiffe program that nobody adapted calls the API with SVIDs from `stintd dev`.
func TestStockGoProgram(t *testing.T) {
	t.Parallel()
	d := startDev(t, []string{"--no-vault"})
	out := run(t, call{
		args: []string{program(t, "stockgo"), d.variable("STINT_ADDR"), d.variable("STINT_SERVER_ID"), "try-it", "web-client"},
		env:  d.env, dir: d.dir,
	}).exits(t, 0).stdout
	line, pems, _ := strings.Cut(out, "\n")
	words := strings.Fields(line)
	if len(words) != 3 || words[0] != "TASK_STATE_CLOSED" || words[1] != "CLOSE_REASON_COMPLETED" {
		t.Fatalf("the task's end: %s", line)
	}
	certs := certificates(t, pems)
	leaf, root := certs[0], certs[len(certs)-1]
	pool := x509.NewCertPool()
	pool.AddCert(root)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	crl := revocations(t, get(t, d.variable("STINT_HTTP_ADDR")+"/crl.pem"))
	revoked := slices.ContainsFunc(crl.RevokedCertificateEntries, func(e x509.RevocationListEntry) bool {
		return e.SerialNumber.Cmp(leaf.SerialNumber) == 0
	})
	if !revoked {
		t.Error("the certificate is not in the CRL after the task's end")
	}
}

// The stock program links nothing of Stint but its proto files, or it would be no proof.
func TestStockGoProgramIsStock(t *testing.T) {
	t.Parallel()
	const module = "github.com/stint-dev/stint/"
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "./testdata/stockgo")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(out), module+"proto/stint/v1\n") {
		t.Fatalf("it does not even link the proto files: %s", out)
	}
	for pkg := range strings.Lines(string(out)) {
		pkg = strings.TrimSpace(pkg)
		if rest, ours := strings.CutPrefix(pkg, module); ours && rest != "proto/stint/v1" && !strings.HasSuffix(rest, "/stockgo") {
			t.Errorf("it links %s", rest)
		}
	}
}

// Done when (2): a stock Python grpcio program that nobody adapted calls the API with SVIDs from `stintd dev`. Its
// identity is in files, as spiffe-helper writes them; its messages come from the proto files' descriptors.
func TestStockPythonProgram(t *testing.T) {
	t.Parallel()
	const python = "/usr/bin/python3" // Debian's, whose grpcio is meant
	if out, err := exec.CommandContext(t.Context(), python, "-c", "import grpc, google.protobuf").CombinedOutput(); err != nil {
		missing(t, python+" has no grpcio (apt-get install python3-grpcio python3-protobuf): "+string(out))
	}
	d := startDev(t, []string{"--no-vault"})
	writeIdentity(t, d)
	descriptors, err := proto.Marshal(descriptorSet(stintv1.File_stint_v1_task_proto))
	if err != nil {
		t.Fatal(err)
	}
	write(t, d.dir+"/stint.pb", descriptors)
	script := read(t, "testdata", "client.py")
	write(t, d.dir+"/client.py", script)
	out := run(t, call{
		args: []string{python, "client.py", d.variable("STINT_ADDR"), "svid.pem", "svid_key.pem", "svid_bundle.pem", "stint.pb"},
		env:  d.plain(), dir: d.dir,
	}).exits(t, 0).stdout
	want := "spiffe://dev.stint.local/agent/agent dev-agent\ntry-it TASK_STATE_ACTIVE web-client\nTASK_STATE_CLOSED CLOSE_REASON_COMPLETED\n" +
		"PERMISSION_DENIED True\n"
	if out != want {
		t.Errorf("it says\n%swant\n%s", out, want)
	}
}

// A stock client that keeps one connection and calls all the time never hears that an SVID ended: its connection is asked to
// go away long before, and the next one comes with the SVID that is valid then.
func TestStockClientOutlivesItsSVID(t *testing.T) {
	t.Parallel()
	const ttl = 10 * time.Second
	d := startDev(t, []string{"--no-vault", "--svid-ttl", ttl.String()})
	source, err := workloadapi.NewX509Source(t.Context(), workloadapi.WithClientOptions(workloadapi.WithAddr(d.variable("SPIFFE_ENDPOINT_SOCKET"))))
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	var dialled []time.Time // by the one connection of grpc at a time
	server := tlsconfig.AuthorizeID(spiffeid.RequireFromString(d.variable("STINT_SERVER_ID")))
	conn, err := grpc.NewClient(d.variable("STINT_ADDR"),
		grpc.WithTransportCredentials(credentials.NewTLS(tlsconfig.MTLSClientConfig(source, source, server))),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			dialled = append(dialled, time.Now())
			return new(net.Dialer).DialContext(ctx, "tcp", addr)
		}))
	if err != nil {
		t.Fatal(err)
	}
	tasks := stintv1.NewTaskServiceClient(conn)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(ttl + ttl/5); time.Now().Before(end); <-tick.C {
		if _, err := tasks.WhoAmI(t.Context(), &stintv1.WhoAmIRequest{}); err != nil {
			t.Fatalf("%s after the first call: %v", time.Since(dialled[0]), err)
		}
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	for n, at := range append(dialled, time.Now())[1:] {
		if lasted := at.Sub(dialled[n]); lasted > ttl/2 {
			t.Errorf("connection %d lasted %s: its SVID may have ended on it", n+1, lasted)
		}
	}
}

// writeIdentity writes the SVID of "agent" into files, as spiffe-helper does.
func writeIdentity(tb testing.TB, d *dev) {
	tb.Helper()
	source, err := workloadapi.NewX509Source(tb.Context(),
		workloadapi.WithClientOptions(workloadapi.WithAddr(d.variable("SPIFFE_ENDPOINT_SOCKET"))))
	if err != nil {
		tb.Fatal(err)
	}
	defer source.Close()
	svid, err := source.GetX509SVID()
	if err != nil {
		tb.Fatal(err)
	}
	chain, key, err := svid.Marshal()
	if err != nil {
		tb.Fatal(err)
	}
	bundle, err := source.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
	if err != nil {
		tb.Fatal(err)
	}
	roots, err := bundle.Marshal()
	if err != nil {
		tb.Fatal(err)
	}
	write(tb, d.dir+"/svid.pem", chain)
	write(tb, d.dir+"/svid_key.pem", key)
	write(tb, d.dir+"/svid_bundle.pem", roots)
}

// descriptorSet holds a proto file and what it imports, imports first, as `buf build` writes it.
func descriptorSet(file protoreflect.FileDescriptor) *descriptorpb.FileDescriptorSet {
	out := &descriptorpb.FileDescriptorSet{}
	seen := map[string]bool{}
	var add func(protoreflect.FileDescriptor)
	add = func(f protoreflect.FileDescriptor) {
		if seen[f.Path()] {
			return
		}
		seen[f.Path()] = true
		for i := range f.Imports().Len() {
			add(f.Imports().Get(i).FileDescriptor)
		}
		out.File = append(out.File, protodesc.ToFileDescriptorProto(f))
	}
	add(file)
	return out
}

// certificates reads all of a PEM text.
func certificates(tb testing.TB, text string) []*x509.Certificate {
	tb.Helper()
	var out []*x509.Certificate
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			tb.Fatal(err)
		}
		out = append(out, cert)
	}
	if len(out) < 2 {
		tb.Fatalf("%d certificates in %s", len(out), text)
	}
	return out
}

// revocations reads a CRL.
func revocations(tb testing.TB, text []byte) *x509.RevocationList {
	tb.Helper()
	block, _ := pem.Decode(text)
	if block == nil {
		tb.Fatalf("no PEM: %s", text)
	}
	crl, err := x509.ParseRevocationList(block.Bytes)
	if err != nil {
		tb.Fatal(err)
	}
	return crl
}
