package x509svid_test

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stint-dev/stint/attestor/attestortest"
	"github.com/stint-dev/stint/attestor/devdomain"
)

// A stock Python client, which checks the server's DNS name and knows nothing of SPIFFE IDs, gets its SVID from the
// Workload API and is attested by it. It needs Debian's python3-grpcio.
func TestStockPythonClient(t *testing.T) {
	t.Parallel()
	const python = "/usr/bin/python3"
	if out, err := exec.CommandContext(t.Context(), python, "-c", "import grpc").CombinedOutput(); err != nil {
		if os.Getenv("STINT_REAL_SERVERS") == "1" {
			t.Fatalf("%s has no grpcio (apt-get install python3-grpcio): %v: %s", python, err, out)
		}
		t.Skip("no grpcio for python3 (apt-get install python3-grpcio); make test requires it")
	}
	d := attestortest.NewDomain(t, "example.org", 0)
	attestortest.Serve(t, d.Run)
	stint := attestortest.Add(t, d, devdomain.Workload{Name: "stint", ID: attestortest.ID(t, d, "/stint"), DNSNames: []string{"localhost"}})
	agent := attestortest.Add(t, d, devdomain.Workload{Name: "agent", ID: attestortest.ID(t, d, "/agent/a")})
	_, port, err := net.SplitHostPort(serveStock(t, d, stint))
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), python, "testdata/client.py", agent, "localhost:"+port).CombinedOutput()
	// 0801 is HealthCheckResponse{status: SERVING}.
	if err != nil || strings.TrimSpace(string(out)) != "spiffe://example.org/agent/a 0801" {
		t.Errorf("%v: %s", err, out)
	}
}
