//go:build spire

package main

import (
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/stint-dev/stint/plugins/servertest"
	"github.com/stint-dev/stint/sdk/agent"
)

const stintID = "spiffe://" + trustDomain + stintPath

// TestSetupSPIREPassesCheck runs what `stintd setup spire` prints at a real SPIRE. `stintd check` is then silent, the broker
// serves by the SVID that SPIRE hands out, and an agent with the entry of the printed comment is served. What an administrator
// has changed in the entry, the script mends when it runs again.
func TestSetupSPIREPassesCheck(t *testing.T) {
	t.Parallel()
	spire := servertest.StartSPIRE(t)
	s := newSite(t, fmt.Sprintf("identity {\n  workload_api = %q\n  spiffe_id = %q\n  trust_domains = [\"partner.org\"]\n}\n", spire.WorkloadAPI, stintID),
		embeddedCA, catalog(limits{}, certRole))
	config, self := s.file("stint.hcl"), "unix:uid:"+strconv.Itoa(os.Getuid())
	code, script, errs := run(t, s.dir, "setup", "spire", "--config", config, "--parent-id", spire.AgentID,
		"--server-socket", spire.ServerSocket, "--selector", self)
	if code != 0 || errs != "" {
		t.Fatalf("setup spire exits with %d: %s", code, errs)
	}
	if code, found := check(t, s.dir, config); code != exitBreaks || !slices.Equal(codesOf(found), []string{"identity"}) {
		t.Errorf("check before setup exits with %d: %+v", code, found)
	}
	if out, err := administer(t, s, spire, script); err == nil || !strings.Contains(out, "partner.org") {
		t.Errorf("the script does not miss the bundle of partner.org: %v: %s", err, out)
	}
	federate(t, s, spire)
	if out, err := administer(t, s, spire, script); err != nil {
		t.Fatalf("the printed script fails: %v\n%s", err, out)
	}
	handsOut(t, spire, stintPath, "stint.example.org")
	if code, found := check(t, s.dir, config); code != 0 || len(found) != 0 {
		t.Errorf("check after setup exits with %d: %+v", code, found)
	}
	mendedBySetup(t, s, spire, script, self)
	servedBySPIRE(t, s, spire, script, self)
}

// mendedBySetup takes the DNS name from Stint's entry, as an administrator might, and runs the script again.
func mendedBySetup(t *testing.T, s *site, spire *servertest.SPIRE, script, self string) {
	t.Helper()
	config := s.file("stint.hcl")
	_, entry, _ := strings.Cut(spire.Administer(t, "entry", "show", "-spiffeID", stintID), "Entry ID         : ")
	entry, _, _ = strings.Cut(entry, "\n")
	spire.Administer(t, "entry", "update", "-entryID", entry, "-parentID", spire.AgentID, "-spiffeID", stintID, "-selector", self)
	handsOut(t, spire, stintPath)
	if code, found := check(t, s.dir, config); code != exitWeakens || !slices.Equal(codesOf(found), []string{"svid-no-dns"}) {
		t.Errorf("check without a DNS name exits with %d: %+v", code, found)
	}
	if out, err := administer(t, s, spire, script); err != nil {
		t.Fatalf("the printed script fails when it runs again: %v\n%s", err, out)
	}
	handsOut(t, spire, stintPath, "stint.example.org")
	if code, found := check(t, s.dir, config); code != 0 || len(found) != 0 {
		t.Errorf("check after setup ran again exits with %d: %+v", code, found)
	}
	if entries := spire.Administer(t, "entry", "show", "-spiffeID", stintID); !strings.Contains(entries, "Found 1 entry") || !strings.Contains(entries, entry) {
		t.Errorf("the script does not keep the one entry %s:\n%s", entry, entries)
	}
}

// servedBySPIRE registers an agent as the script's comment says, and takes it through a task. The Workload API hands out both
// SVIDs, since both processes are of one user.
func servedBySPIRE(t *testing.T, s *site, spire *servertest.SPIRE, script, self string) {
	t.Helper()
	line := strings.NewReplacer("spiffe://example.org/NODE", spire.AgentID, "unix:user:NAME", self, "/NAME", "/a1").Replace(
		between(t, script, "\n#   ", "\n"))
	if out, err := administer(t, s, spire, line); err != nil {
		t.Fatalf("the printed comment fails: %v\n%s", err, out)
	}
	handsOut(t, spire, agentPath)
	d := s.start(t)
	client := connect(t, agent.WithAddr(s.grpc), agent.WithWorkloadAPI(spire.WorkloadAPI), agent.WithSPIFFEID("spiffe://"+trustDomain+agentPath),
		agent.WithLogKey(s.key))
	who, err := client.WhoAmI(t.Context())
	if err != nil || who.GetId() != "spiffe://"+trustDomain+agentPath || who.GetProfile() != "invoice-agent" {
		t.Fatalf("the agent is %v, %v", who, err)
	}
	task := declare(t, client, 5*time.Minute, certRole)
	issue(t, task, certRole)
	if _, err := task.Complete(t.Context(), 30*time.Second); err != nil {
		t.Error(err)
	}
	d.stop(t)
}

// administer runs a script with spire-server on PATH, as an administrator of SPIRE would.
func administer(t *testing.T, s *site, spire *servertest.SPIRE, script string) (string, error) {
	t.Helper()
	path := s.file("spire.sh")
	write(t, path, script)
	cmd := exec.CommandContext(t.Context(), "sh", path)
	cmd.Env = []string{"PATH=" + filepath.Dir(spire.ServerBinary) + ":/usr/bin:/bin"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// federate gives SPIRE the bundle of partner.org.
func federate(t *testing.T, s *site, spire *servertest.SPIRE) {
	t.Helper()
	bundle := s.file("partner.pem")
	write(t, bundle, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: newAuthority(t).cert.Raw})))
	spire.Administer(t, "bundle", "set", "-id", "spiffe://partner.org", "-path", bundle)
}

// handsOut waits until the Workload API hands out an SVID for a path, with just these DNS names.
func handsOut(t *testing.T, spire *servertest.SPIRE, path string, names ...string) {
	t.Helper()
	eventually(t, time.Minute, func() error {
		svids, err := workloadapi.FetchX509SVIDs(t.Context(), workloadapi.WithAddr(spire.WorkloadAPI))
		if err != nil {
			return err
		}
		for _, svid := range svids {
			if svid.ID.Path() == path && slices.Equal(svid.Certificates[0].DNSNames, names) {
				return nil
			}
		}
		return errors.New("SPIRE hands out no such SVID")
	})
}
