package stepca

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/internal/database"
)

const pathProvisioners = "/1.0/provisioners"

// ClockBound is how far this machine's clock may be from step-ca's: certificates end by one and are recorded by the
// other. Beyond tokenLeeway step-ca refuses Stint's tokens.
const ClockBound = 5 * time.Second

// defaultMinTLS is step-ca's own minTLSCertDuration.
const defaultMinTLS = 5 * time.Minute

// maxProvisionerPages bounds how much of a list is read, a hundred a page.
const maxProvisionerPages = 20

// provisioner is what step-ca tells the public of one.
type provisioner struct {
	Type string `json:"type"`
	Name string `json:"name"`
	Key  struct {
		KeyID string `json:"kid"`
	} `json:"key"`
	Claims *provisionerClaims `json:"claims"`
}

// provisionerClaims are the claims that matter here.
type provisionerClaims struct {
	MinTLS          string `json:"minTLSCertDuration"`
	MaxTLS          string `json:"maxTLSCertDuration"`
	DisableRenewal  *bool  `json:"disableRenewal"`
	NoStepExtension *bool  `json:"disableSmallstepExtensions"`
}

// check reads what step-ca's public API shows of its set-up. Claims that are set for the whole authority do not show;
// probe tries what they would forbid.
func (r *remote) check(ctx context.Context, roles []plugins.Role) []plugins.Finding {
	all, err := r.provisioners(ctx)
	if err != nil {
		return []plugins.Finding{broken("ca-unreachable", "step-ca", err.Error(), "see that "+r.client.base+" answers and root_file holds its root")}
	}
	return slices.Concat(r.checkClock(ctx), r.checkProvisioners(all, roles), r.checkCRL(ctx), r.checkDatabase(ctx))
}

// checkDatabase reads the first of what step-ca has signed.
func (r *remote) checkDatabase(ctx context.Context) []plugins.Finding {
	if r.signed == nil {
		return nil
	}
	for _, err := range r.inDatabase(ctx, time.Now()) {
		if err != nil {
			return []plugins.Finding{weak("ca-database", "database",
				"what step-ca has signed cannot be read, so nobody sees what it signed for others: "+err.Error(), r.grant())}
		}
		break
	}
	return nil
}

// grant is the right that reading takes.
func (r *remote) grant() string {
	if r.signed.Kind == database.MySQL {
		return "GRANT SELECT (nvalue) ON " + r.signed.Database + ".x509_certs TO " + r.signed.User
	}
	return "GRANT SELECT (nvalue) ON x509_certs TO " + r.signed.User
}

// checkClock compares step-ca's clock, as its answers show it, with this machine's.
func (r *remote) checkClock(ctx context.Context) []plugins.Finding {
	asked := time.Now()
	header, err := r.client.head(ctx, pathHealth)
	if err != nil {
		return nil // check has just found it well
	}
	answered := time.Now()
	first, err := http.ParseTime(header.Get("Date"))
	if err != nil {
		return nil
	}
	apart := max(asked.Sub(first.Add(time.Second)), first.Sub(answered))
	if apart <= ClockBound {
		return nil
	}
	found := weak("clock", "clock", fmt.Sprintf("step-ca's clock and this machine's are %s apart; at most %s is well", apart.Round(time.Second), ClockBound),
		"timedatectl set-ntp true, on the machine whose clock is wrong")
	if apart > tokenLeeway {
		found.Severity = plugins.Breaks
	}
	return []plugins.Finding{found}
}

func (r *remote) provisioners(ctx context.Context) ([]provisioner, error) {
	var all []provisioner
	cursor := ""
	for range maxProvisionerPages {
		body, err := r.client.get(ctx, pathProvisioners+"?limit=100&cursor="+url.QueryEscape(cursor), maxAnswer)
		if err != nil {
			return nil, err
		}
		var page struct {
			Provisioners []provisioner `json:"provisioners"`
			Next         string        `json:"nextCursor"`
		}
		if err := json.Unmarshal(body, &page); err != nil {
			return nil, fmt.Errorf("%w: read provisioners: %w", plugins.ErrUnavailable, err)
		}
		all = append(all, page.Provisioners...)
		if cursor = page.Next; cursor == "" {
			return all, nil
		}
	}
	return all, nil
}

func (r *remote) checkProvisioners(all []provisioner, roles []plugins.Role) []plugins.Finding {
	name := r.settings.Remote.Provisioner
	var found []plugins.Finding
	mine := slices.IndexFunc(all, func(p provisioner) bool {
		return p.Type == "JWK" && p.Name == name && p.Key.KeyID == r.tokens.keyID
	})
	if mine < 0 {
		found = append(found, broken("ca-provisioner-missing", "provisioner "+name, "there is none of type JWK with key "+r.tokens.keyID,
			"step ca provisioner add "+name+" --type JWK --public-key key.pub"))
	}
	for i, p := range all {
		if i != mine {
			found = append(found, broken("ca-other-provisioner", "provisioner "+p.Name,
				"it can sign under the same CA, so services that trust the task bundle would trust what it signs",
				"step ca provisioner remove "+p.Name+", or a CA of its own for Stint"))
		}
	}
	if mine >= 0 {
		found = append(found, r.checkClaims(all[mine].Claims, roles)...)
	}
	return found
}

func (r *remote) checkClaims(c *provisionerClaims, roles []plugins.Role) []plugins.Finding {
	if c == nil {
		c = &provisionerClaims{}
	}
	subject := "provisioner " + r.settings.Remote.Provisioner
	var found []plugins.Finding
	switch {
	case c.DisableRenewal == nil:
		found = append(found, weak("ca-renewal-unstated", subject, "it does not say that renewal is disabled; the whole authority may",
			`"claims": {"disableRenewal": true} of the provisioner, in ca.json`))
	case !*c.DisableRenewal:
		found = append(found, broken("ca-renewal", subject, "holders can renew their certificates beyond their task",
			`"claims": {"disableRenewal": true} of the provisioner, in ca.json`))
	}
	if c.NoStepExtension != nil && *c.NoStepExtension {
		found = append(found, broken("ca-no-extension", subject, "without its own extension step-ca does not enforce disableRenewal",
			`"claims": {"disableSmallstepExtensions": false} of the provisioner, in ca.json`))
	}
	shortest, err := time.ParseDuration(c.MinTLS)
	stated := "step-ca signs for at least " + shortest.String()
	if err != nil {
		shortest, stated = defaultMinTLS, "step-ca signs for at least "+defaultMinTLS.String()+" unless it is told otherwise"
	}
	longest, err := time.ParseDuration(c.MaxTLS)
	for _, role := range roles {
		if role.MaxTTL > 0 && role.MaxTTL < shortest {
			found = append(found, weak("ca-min-ttl", "role "+role.Name, fmt.Sprintf("ttl.max is %s, and %s", role.MaxTTL, stated),
				`"claims": {"minTLSCertDuration": "1s"} of the provisioner, in ca.json`))
		}
		if err == nil && role.MaxTTL > longest {
			found = append(found, weak("ca-max-ttl", "role "+role.Name,
				fmt.Sprintf("ttl.max is %s, and step-ca signs for at most %s", role.MaxTTL, longest),
				fmt.Sprintf("ttl: {max: %s} in the role", longest)))
		}
	}
	return found
}

func (r *remote) checkCRL(ctx context.Context) []plugins.Finding {
	if err := r.fetchFor(ctx, fetchEvery); err != nil {
		if errors.Is(err, plugins.ErrMisconfigured) {
			return []plugins.Finding{broken("ca-crl-off", "CRL", "step-ca has none, so nothing can be revoked: "+err.Error(),
				`"crl": {"enabled": true, "generateOnRevoke": true, "cacheDuration": "60s"} in ca.json, and a "db"`)}
		}
		return []plugins.Finding{broken("ca-crl-unreadable", "CRL", err.Error(), `see that "crl": {"enabled": true} is in ca.json and step-ca is up`)}
	}
	c := r.current.Load()
	var found []plugins.Finding
	if validity := c.nextUpdate.Sub(c.signed); validity > r.settings.CRLValidity {
		found = append(found, broken("ca-crl-validity", "CRL",
			fmt.Sprintf("it is valid for %s, and the exposure of roles is computed with %s", validity, r.settings.CRLValidity),
			fmt.Sprintf(`"crl": {"cacheDuration": "%s"} in ca.json, or crl_validity = "%s" in stint.hcl`, r.settings.CRLValidity, validity)))
	}
	if u := r.settings.CRLURL; u != "" && len(c.points) > 0 && !slices.Contains(c.points, u) {
		found = append(found, weak("ca-crl-url", "CRL",
			"it names "+c.points[0]+" as its URL, and certificates name "+u+": OpenSSL then says `different CRL scope`",
			`"crl": {"idpURL": "`+u+`"} in ca.json`))
	}
	return found
}

func broken(code, subject, problem, remedy string) plugins.Finding {
	return plugins.Finding{Severity: plugins.Breaks, Code: code, Subject: subject, Problem: problem, Remedy: remedy}
}

func weak(code, subject, problem, remedy string) plugins.Finding {
	return plugins.Finding{Severity: plugins.Weakens, Code: code, Subject: subject, Problem: problem, Remedy: remedy}
}
