package server

import (
	"crypto/x509"
	"math"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/stint-dev/stint/attestor"
	"github.com/stint-dev/stint/broker"
	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/policy"
	"github.com/stint-dev/stint/broker/resource"
	"github.com/stint-dev/stint/broker/task"
	"github.com/stint-dev/stint/plugins"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// The functions in this file and in states.go are pure: a value in, a message out, or the other way round.

// timeOf writes a time; the zero time is unset.
func timeOf(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// durationOf writes a duration; zero is unset.
func durationOf(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

// count writes a number of things.
func count(n int) int32 { return int32(min(max(n, 0), math.MaxInt32)) }

func declarationOf(req *stintv1.DeclareTaskRequest) broker.Declaration {
	d := broker.Declaration{
		Purpose: req.GetPurpose(), Description: req.GetDescription(), TTL: req.GetTtl().AsDuration(),
		IdleTimeout: req.GetIdleTimeout().AsDuration(), Labels: req.GetLabels(), Strict: req.GetStrict(),
		RequestID: req.GetRequestId(), ValidateOnly: req.GetValidateOnly(),
	}
	if req.GetNotAfter() != nil {
		d.NotAfter = req.GetNotAfter().AsTime()
	}
	for _, r := range req.GetRoles() {
		d.Roles = append(d.Roles, broker.RoleRequest{Role: r.GetRole(), Params: r.GetParameters(), TTL: r.GetTtl().AsDuration()})
	}
	return d
}

func taskOf(t task.Task) *stintv1.Task {
	out := &stintv1.Task{
		Name: taskName(t.ID), ShortName: t.ShortName, Agent: t.Agent, Profile: t.Profile, Purpose: t.Purpose,
		State: taskStateOf(t.State), CloseReason: closeReasonOf(t.CloseReason), NotAfter: timeOf(t.NotAfter),
		IdleTimeout: durationOf(t.IdleTimeout), CreateTime: timeOf(t.CreatedAt), ClosingTime: timeOf(t.ClosingAt),
		ClosedTime: timeOf(t.ClosedAt), ManifestSha256: t.ManifestHash.String(), Labels: t.Labels, Owner: t.Owner,
		Sponsor: t.Sponsor, PolicySet: t.PolicySet, AuditIndex: t.Record, Teardown: summaryOf(t.Summary),
		Description: t.Description,
	}
	for _, g := range t.Grants {
		out.Grants = append(out.Grants, &stintv1.Grant{
			Role: g.Role, Ttl: durationOf(g.TTL), Parameters: g.Params, Policies: g.Policies, Exposure: exposureOf(g.Exposure),
		})
	}
	return out
}

// taskName is a task's resource name.
func taskName(id task.ID) string { return "tasks/" + id.String() }

func summaryOf(s task.Summary) *stintv1.TeardownSummary {
	out := &stintv1.TeardownSummary{
		Leases: count(s.Leases), Final: count(s.Final), ByProof: make(map[string]int32, len(s.ByProof)), Stuck: count(s.Stuck),
		UsableUntil: timeOf(s.UsableUntil), UncheckedUntil: timeOf(s.UncheckedUntil),
	}
	for proof, n := range s.ByProof {
		out.ByProof[string(proof)] = count(n)
	}
	return out
}

func exposureOf(e plugins.Exposure) *stintv1.Exposure {
	out := &stintv1.Exposure{UntilExpiry: e.UntilExpiry, Reason: e.Reason}
	if e.Bounded {
		out.Max = durationpb.New(e.Max) // a bound of zero is set, too
	}
	return out
}

func clampsOf(clamps []policy.Clamp) []*stintv1.Clamp {
	var out []*stintv1.Clamp
	for _, c := range clamps {
		out = append(out, &stintv1.Clamp{
			Field: c.Field, Requested: durationpb.New(c.Requested), Granted: durationpb.New(c.Granted), LimitedBy: c.LimitedBy,
		})
	}
	return out
}

func leaseOf(l lease.Lease) *stintv1.Lease {
	return &stintv1.Lease{
		Name: "leases/" + l.ID.String(), Task: taskName(l.Task), Role: l.Role, Backend: l.Backend, State: leaseStateOf(l.State),
		CreateTime: timeOf(l.CreatedAt), NotAfter: timeOf(l.NotAfter), PublicRef: l.PublicRef, Exposure: exposureOf(l.Exposure),
		RevokedAt: timeOf(l.RevokedAt), UsableUntil: timeOf(l.UsableUntil), UncheckedUntil: timeOf(l.UncheckedUntil),
		Proof: string(l.Proof), ProofDetail: l.ProofDetail, Attempts: count(l.Attempts), LastError: l.LastError, Stuck: l.Stuck,
		NextAttempt: nextAttempt(l), Agent: l.Agent,
	}
}

// nextAttempt is set while the lease is being ended: before, the time of its next look says nothing to a client.
func nextAttempt(l lease.Lease) *timestamppb.Timestamp {
	if l.State != lease.Revoking && l.State != lease.Lapsing {
		return nil
	}
	return timeOf(l.NextAt)
}

func leasesOf(leases []lease.Lease) []*stintv1.Lease {
	out := make([]*stintv1.Lease, 0, len(leases))
	for _, l := range leases {
		out = append(out, leaseOf(l))
	}
	return out
}

// answerOf writes an issued credential. It is the only place at which a secret leaves; the codec overwrites it once it is
// marshalled.
func answerOf(i broker.Issued, deliver resource.Deliver) *stintv1.IssueCredentialResponse {
	out := &stintv1.IssueCredentialResponse{
		Lease: leaseOf(i.Lease), Delivery: deliveryOf(deliver), Clamps: clampsOf(i.Clamps), Checkpoint: string(i.Checkpoint),
	}
	if len(i.Credential.Chain) > 0 {
		out.Credential = &stintv1.IssueCredentialResponse_Certificate{Certificate: certificateOf(i.Credential)}
		return out
	}
	secret := &stintv1.SecretCredential{Fields: make(map[string][]byte, len(i.Credential.Fields))}
	for name, value := range i.Credential.Fields {
		secret.Fields[name] = value.Expose()
	}
	out.Credential = &stintv1.IssueCredentialResponse_Secret{Secret: secret}
	return out
}

func certificateOf(c plugins.Credential) *stintv1.CertificateCredential {
	out := &stintv1.CertificateCredential{Chain: c.Chain, Bundle: c.Bundle}
	if leaf, err := x509.ParseCertificate(c.Chain[0]); err == nil && len(leaf.URIs) == 1 {
		out.SpiffeId = leaf.URIs[0].String()
	}
	return out
}

func deliveryOf(d resource.Deliver) *stintv1.Delivery {
	return &stintv1.Delivery{Env: d.Env, With: d.With, Files: d.Files}
}

func availableOf(roles []policy.RoleView) []*stintv1.AvailableRole {
	out := make([]*stintv1.AvailableRole, 0, len(roles))
	for _, r := range roles {
		view := &stintv1.AvailableRole{
			Name: r.Name, Description: r.Description, DefaultTtl: durationOf(r.DefaultTTL), MaxTtl: durationOf(r.MaxTTL),
			Exposure: exposureOf(r.Info.Exposure), NeedsCsr: r.Info.NeedsCSR, Delivery: deliveryOf(r.Deliver),
		}
		for _, p := range r.Parameters {
			view.Parameters = append(view.Parameters, &stintv1.ParameterInfo{
				Name: p.Name, Description: p.Description, Pattern: p.Pattern.String(), Required: p.Required,
			})
		}
		out = append(out, view)
	}
	return out
}

// whoIs writes an identity.
func whoIs(id attestor.Identity) *stintv1.WhoAmIResponse {
	who := &stintv1.WhoAmIResponse{Id: id.String(), Method: string(id.Method), SvidExpires: timeOf(id.NotAfter)}
	if id.Method == attestor.MethodLocal {
		who.Id = "local:uid:" + strconv.FormatUint(uint64(id.Local.UID), 10)
	}
	return who
}

func changesOf(changes []resource.Change) []*stintv1.Change {
	out := make([]*stintv1.Change, 0, len(changes))
	for _, c := range changes {
		out = append(out, &stintv1.Change{Name: c.ID, Action: string(c.Action)})
	}
	return out
}

func resourceOf(set resource.Set, doc resource.Document) *stintv1.Resource {
	out := &stintv1.Resource{
		Name: doc.ID(), Kind: kindOf(doc.Kind), Yaml: doc.YAML, Etag: doc.ETag(), Source: doc.Source,
	}
	if role, ok := set.Role(doc.Name); ok && doc.Kind == resource.KindRole {
		out.Backend, out.Exposure = role.Backend, exposureOf(role.Info.Exposure)
	}
	return out
}
