package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	vaultapi "github.com/hashicorp/vault/api"
	"golang.org/x/sync/errgroup"

	"github.com/stint-dev/stint/broker/audit"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

// story is what the steps hand on to one another.
type story struct {
	dev     *devBroker
	client  *agent.Client
	service *demoService
	task    *agent.Task
	cert    *agent.Credential
	otps    []*agent.Credential // one to use, one to see gone
	pubkey  string
}

// demoHost is the host that the demo's one-time passwords are for.
const demoHost = "10.0.0.7"

// tellStory runs the steps in order, and the service beside them.
func tellStory(ctx context.Context, n *narrator, d *devBroker) (err error) {
	s := &story{dev: d, pubkey: d.house.keys.Text}
	if s.service, err = startDemoService(ctx, "http://"+d.cfg.Listen.HTTP); err != nil {
		return fmt.Errorf("start the mTLS service: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	beside, ctx := errgroup.WithContext(ctx)
	beside.Go(func() error { return s.service.run(ctx) })
	err = s.tell(ctx, n)
	if s.client != nil {
		err = errors.Join(err, s.client.Close())
	}
	stop()
	return errors.Join(err, beside.Wait())
}

func (s *story) tell(ctx context.Context, n *narrator) error {
	vault := s.dev.vault != nil
	if !vault && !s.dev.options.noVault && !n.json {
		fmt.Fprintf(n.out, "    Without Vault: %s.\n", whereVault)
	}
	steps := []struct {
		title string
		do    func(context.Context, *step) error
		skip  bool
	}{
		{"The agent attests with its SPIFFE SVID", s.attest, false},
		{"It declares a task: one purpose, a deadline, the roles it needs", s.declare, false},
		{"It gets a certificate; the private key never leaves it", s.certificate, false},
		{"A plain mTLS service trusts that certificate", s.call, false},
		{"It gets two one-time SSH passwords from Vault, and uses one", s.secrets, !vault},
		{"It reaches for more than it may have, and is denied with the reason", s.overreach, false},
		{"The task completes: everything it was given is revoked and read back", s.complete, false},
		{"The certificate is gone: the service turns it away", s.certificateGone, false},
		{"The unused password is gone: Vault does not know it", s.secretGone, !vault},
		{"The receipt verifies with nothing but a public key", s.verify, false},
	}
	for _, st := range steps {
		if st.skip {
			continue
		}
		if err := n.tell(ctx, st.title, st.do); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) attest(ctx context.Context, st *step) error {
	var err error
	s.client, err = agent.New(ctx, agent.WithAddr(s.dev.cfg.Listen.GRPC), agent.WithWorkloadAPI(s.dev.domain.Addr("agent")),
		agent.WithServerID("spiffe://"+devTrustDomain+"/stint"))
	if err != nil {
		return err
	}
	who, err := s.client.WhoAmI(ctx)
	if err != nil {
		return err
	}
	st.Facts["agent"] = who.GetId()
	st.say("%s by %s, profile %s", who.GetId(), who.GetMethod(), who.GetProfile())
	if who.GetProfile() == "" {
		return errors.New("no profile matches")
	}
	return nil
}

func (s *story) declare(ctx context.Context, st *step) error {
	d := agent.Declaration{
		Purpose: "demo", Description: "Show what Stint does", TTL: 10 * time.Minute, Roles: []agent.Role{{Name: "web-client", TTL: 5 * time.Minute}},
	}
	if s.dev.vault != nil {
		d.Roles = append(d.Roles, agent.Role{Name: "build-host", Parameters: map[string]string{"ip": demoHost}})
	}
	var err error
	if s.task, err = s.client.Declare(ctx, d); err != nil {
		return err
	}
	t := s.task.Latest()
	st.Facts["task"], st.Facts["manifest_sha256"] = t.GetShortName(), t.GetManifestSha256()
	st.say("%s, ends %s, manifest sha256:%s…", t.GetShortName(), t.GetNotAfter().AsTime().Format(time.TimeOnly), t.GetManifestSha256()[:12])
	return nil
}

func (s *story) certificate(ctx context.Context, st *step) error {
	var err error
	if s.cert, err = s.task.Issue(ctx, "web-client", agent.IssueOptions{}); err != nil {
		return err
	}
	leaf := s.cert.Certificate.Chain[0]
	st.Facts["serial"] = fmt.Sprintf("%032X", leaf.SerialNumber)
	st.say("serial %032X is the lease ID, valid until %s", leaf.SerialNumber, leaf.NotAfter.Format(time.TimeOnly))
	if want := strings.TrimPrefix(s.cert.Lease.GetName(), "leases/"); st.Facts["serial"] != want {
		return fmt.Errorf("serial %s is not lease %s", st.Facts["serial"], want)
	}
	return nil
}

func (s *story) call(ctx context.Context, st *step) error {
	said, err := callService(ctx, s.service, s.cert.Certificate.TLS())
	if err != nil {
		return err
	}
	st.say("it says: %s", said)
	return nil
}

func (s *story) secrets(ctx context.Context, st *step) error {
	for range 2 {
		otp, err := s.task.Issue(ctx, "build-host", agent.IssueOptions{})
		if err != nil {
			return err
		}
		s.otps = append(s.otps, otp)
	}
	ip, err := s.redeem(ctx, s.otps[0])
	if err != nil {
		return err
	}
	if ip != demoHost {
		return fmt.Errorf("the password is good for %q, not for %s", ip, demoHost)
	}
	st.say("two passwords for %s; the host asks Vault, which says that the first is good", ip)
	return nil
}

// redeem does what the ssh helper on a host does: asks Vault whether a one-time password is good. Doing so uses it up. It
// returns the address that the password is for, and "" for one that Vault does not know.
func (s *story) redeem(ctx context.Context, otp *agent.Credential) (string, error) {
	host := devVault{addr: s.dev.vault.addr} // the endpoint needs no token
	answer, err := host.write(ctx, "ssh/verify", map[string]any{"otp": string(otp.Fields["key"].Expose())})
	if refusal, ok := errors.AsType[*vaultapi.ResponseError](err); ok && refusal.StatusCode == http.StatusBadRequest {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("ask vault about the password: %w", err)
	}
	ip, ok := answer["ip"].(string)
	if !ok {
		return "", errors.New("vault's answer names no address")
	}
	return ip, nil
}

func (s *story) overreach(ctx context.Context, st *step) error {
	_, err := s.client.Declare(ctx, agent.Declaration{Purpose: "demo", Roles: []agent.Role{{Name: "payroll-db"}}})
	if got := agent.ReasonOf(err); got != stintv1.Reason_REASON_ROLE_OUTSIDE_PROFILE {
		return fmt.Errorf("wanted ROLE_OUTSIDE_PROFILE, got %w", err)
	}
	st.say("%v", err)
	return nil
}

func (s *story) complete(ctx context.Context, st *step) error {
	answer, err := s.task.Complete(ctx, 30*time.Second)
	if err != nil {
		return err
	}
	for _, l := range answer.GetLeases() {
		st.say("%-12s %-11s %s: %s", l.GetRole(), l.GetBackend(), strings.TrimPrefix(l.GetState().String(), "LEASE_STATE_"), l.GetProofDetail())
	}
	if got := answer.GetTask().GetState(); got != stintv1.TaskState_TASK_STATE_CLOSED {
		return fmt.Errorf("the task is %s", got)
	}
	sum := answer.GetTask().GetTeardown()
	st.say("CLOSED: %d of %d leases final, %d stuck", sum.GetFinal(), sum.GetLeases(), sum.GetStuck())
	if sum.GetFinal() != sum.GetLeases() || int(sum.GetLeases()) != 1+len(s.otps) {
		return errors.New("not every lease is final")
	}
	return nil
}

func (s *story) certificateGone(ctx context.Context, st *step) error {
	_, err := callService(ctx, s.service, s.cert.Certificate.TLS())
	if err == nil {
		return errors.New("the service still accepts the certificate")
	}
	// The client learns only that it was refused; the service's own check says why, for the same chain.
	state := s.cert.Certificate.TLS()
	if err := s.service.verifyLeaf(ctx, state.Leaf); !errors.Is(err, errRevoked) {
		return fmt.Errorf("refused, but not as revoked: %w", err)
	}
	st.say("refused: %s", errRevoked)
	return nil
}

func (s *story) secretGone(ctx context.Context, st *step) error {
	ip, err := s.redeem(ctx, s.otps[1])
	if err != nil {
		return err
	}
	if ip != "" {
		return errors.New("the password is still good")
	}
	st.say("refused: OTP not found")
	return nil
}

func (s *story) verify(ctx context.Context, st *step) error {
	answer, err := s.client.Audit().GetReceipt(ctx, &stintv1.GetReceiptRequest{Task: s.task.Name()})
	if err != nil {
		return err
	}
	report, err := audit.VerifyReceipt(answer.GetJson(), s.pubkey)
	if err != nil {
		return err
	}
	if !report.Closed || report.Open() != 0 || len(report.Leases) != 1+len(s.otps) {
		return fmt.Errorf("the receipt shows %d leases, %d open, closed %t", len(report.Leases), report.Open(), report.Closed)
	}
	st.say("%d records, all in the signed log of %d: %s let %s do %s, and all %d leases ended", report.Records, report.Size,
		report.Sponsor, report.Agent, report.Purpose, len(report.Leases))
	return nil
}
