package cli

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	"github.com/stint-dev/stint/cmd/stint/internal/handover"
	"github.com/stint-dev/stint/cmd/stint/internal/render"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

type issueFlags struct {
	task, role, out string
	params, names   []string
	ttl             time.Duration
	show            bool
}

func (a *app) credential() *cobra.Command {
	cmd := &cobra.Command{Use: "credential", Short: "Get credentials for a task", Args: cobra.NoArgs, RunE: needsCommand}
	cmd.AddCommand(a.credentialIssue())
	return cmd
}

func (a *app) credentialIssue() *cobra.Command {
	f := &issueFlags{}
	cmd := &cobra.Command{
		Use: "issue --task T --role R (--out DIR | --show-secret)", Short: "Get one credential", Args: cobra.NoArgs,
		Long: "Get one credential of an open task. A certificate's key is made here and never leaves this machine: --out gets\n" +
			"key.pem, chain.pem and bundle.pem. A secret is written to --out, one file for each field, or printed where\n" +
			"--show-secret asks for it. Files have mode 0600.",
		RunE: a.with(func(ctx context.Context, s session, _ []string) error { return s.issue(ctx, f) }),
	}
	flags := cmd.Flags()
	flags.StringVar(&f.task, "task", "", "the task")
	flags.StringVar(&f.role, "role", "", "one of its roles")
	flags.StringVar(&f.out, "out", "", "write the credential into this folder, made with mode 0700 if missing")
	flags.BoolVar(&f.show, "show-secret", false, "print a secret to standard output")
	flags.DurationVar(&f.ttl, "ttl", 0, "how long it should live (default: what was granted)")
	flags.StringArrayVar(&f.params, "param", nil, "a parameter: NAME=VALUE; repeat for more")
	flags.StringArrayVar(&f.names, "dns", nil, "a DNS name for a certificate; repeat for more")
	for _, name := range []string{"task", "role"} {
		_ = cmd.MarkFlagRequired(name) // it fails for unknown flags only
	}
	return cmd
}

// issue asks only once it is clear where the credential goes: a secret that nobody takes would be lost.
func (s session) issue(ctx context.Context, f *issueFlags) error {
	params, err := parsePairs("param", f.params)
	if err != nil {
		return err
	}
	ctx, cancel := s.app.call(ctx)
	defer cancel()
	if err = s.checkDestination(ctx, f); err != nil {
		return err
	}
	c, err := s.Issue(ctx, taskName(f.task), f.role, agent.IssueOptions{Parameters: params, TTL: f.ttl, DNSNames: f.names})
	if err != nil {
		return declareAgain(err, f.task)
	}
	defer c.Wipe()
	s.app.sayClamps(c.Clamps)
	var files []string
	if f.out != "" {
		if files, err = handover.Save(f.out, c); err != nil {
			return errors.Join(err, s.giveBack(ctx, c))
		}
	}
	return s.app.showCredential(c, files, f.show)
}

func (s session) checkDestination(ctx context.Context, f *issueFlags) error {
	role, err := s.Role(ctx, f.role)
	switch {
	case errors.Is(err, &agent.Error{Code: codes.NotFound}): // the broker will say why
		return nil
	case err != nil:
		return err
	case role.GetNeedsCsr() && f.out == "":
		return usage("role %s issues certificates: --out DIR says where key and certificate go", f.role)
	case role.GetNeedsCsr() && f.show:
		return usage("role %s issues certificates: there is no secret to show", f.role)
	case f.out == "" && !f.show:
		return usage("say where the secret goes: --out DIR, or --show-secret to print it")
	}
	return nil
}

// giveBack revokes what could not be handed over.
func (s session) giveBack(ctx context.Context, c *agent.Credential) error {
	_, err := s.Credentials().RevokeLease(ctx, &stintv1.RevokeLeaseRequest{Name: c.Lease.GetName()})
	if err == nil {
		s.app.sayf("note:   lease %s was revoked", bareLease(c.Lease.GetName()))
	}
	return err
}

// credentialJSON is what -o json prints; docs/cli.md.
type credentialJSON struct {
	Lease        string            `json:"lease"`
	Task         string            `json:"task"`
	Role         string            `json:"role"`
	NotAfter     time.Time         `json:"notAfter"`
	PublicRef    string            `json:"publicRef"`
	SPIFFEID     string            `json:"spiffeId,omitempty"`
	Files        []string          `json:"files"`
	Fields       map[string]string `json:"fields,omitempty"`
	FieldsBase64 map[string]string `json:"fieldsBase64,omitempty"`
}

//nolint:revive // the flag is the person's decision
func (a *app) showCredential(c *agent.Credential, files []string, show bool) error {
	doc := credentialJSON{
		Lease: c.Lease.GetName(), Task: c.Lease.GetTask(), Role: c.Lease.GetRole(), NotAfter: c.Expires(),
		PublicRef: c.Lease.GetPublicRef(), Files: append([]string{}, files...),
	}
	if c.Certificate != nil {
		doc.SPIFFEID = c.Certificate.SPIFFEID
	}
	if show {
		doc.expose(c)
	}
	return a.show(doc, func(w io.Writer) error {
		t := render.NewTable()
		t.Row("Lease", bareLease(doc.Lease)+"    ends in "+render.Until(c.Lease.GetNotAfter(), time.Now()))
		t.Row("Ref", join(doc.PublicRef, doc.SPIFFEID))
		for _, file := range doc.Files {
			t.Row("File", file)
		}
		if err := t.Write(w); err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(doc.Fields)) {
			if _, err := fmt.Fprintf(w, "%s=%s\n", render.Clean(name), doc.Fields[name]); err != nil {
				return err
			}
		}
		for _, name := range slices.Sorted(maps.Keys(doc.FieldsBase64)) {
			if _, err := fmt.Fprintf(w, "%s (base64)=%s\n", render.Clean(name), doc.FieldsBase64[name]); err != nil {
				return err
			}
		}
		return nil
	})
}

// expose takes the fields out of their values, as asked.
func (d *credentialJSON) expose(c *agent.Credential) {
	for name, value := range c.Fields {
		raw := value.Expose()
		if text := string(raw); utf8.Valid(raw) && render.Clean(text) == text {
			if d.Fields == nil {
				d.Fields = map[string]string{}
			}
			d.Fields[name] = text
			continue
		}
		if d.FieldsBase64 == nil {
			d.FieldsBase64 = map[string]string{}
		}
		d.FieldsBase64[name] = base64.StdEncoding.EncodeToString(raw)
	}
}
