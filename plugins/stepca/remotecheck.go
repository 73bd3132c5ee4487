package stepca

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/stint-dev/stint/plugins"
)

const pathProvisioners = "/1.0/provisioners"

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

// check reads what step-ca's public API shows of its set-up. Claims that are set for the whole authority do not show.
func (r *remote) check(ctx context.Context, roles []plugins.Role) []plugins.Finding {
	all, err := r.provisioners(ctx)
	if err != nil {
		return []plugins.Finding{broken("step-ca", err.Error(), "see that "+r.client.base+" answers and root_file holds its root")}
	}
	return append(r.checkProvisioners(all, roles), r.checkCRL(ctx)...)
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
		found = append(found, broken("provisioner "+name, "there is none of type JWK with key "+r.tokens.keyID,
			"step ca provisioner add "+name+" --type JWK --public-key key.pub"))
	}
	for i, p := range all {
		if i != mine {
			found = append(found, broken("provisioner "+p.Name,
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
		found = append(found, plugins.Finding{
			Severity: plugins.Weakens, Subject: subject, Problem: "it does not say that renewal is disabled; the whole authority may",
			Remedy: `"claims": {"disableRenewal": true}`,
		})
	case !*c.DisableRenewal:
		found = append(found, broken(subject, "holders can renew their certificates beyond their task", `"claims": {"disableRenewal": true}`))
	}
	if c.NoStepExtension != nil && *c.NoStepExtension {
		found = append(found, broken(subject, "without its own extension step-ca does not enforce disableRenewal",
			`"claims": {"disableSmallstepExtensions": false}`))
	}
	for _, role := range roles {
		if limit, err := time.ParseDuration(c.MinTLS); err == nil && role.MaxTTL > 0 && role.MaxTTL < limit {
			found = append(found, plugins.Finding{
				Severity: plugins.Weakens, Subject: "role " + role.Name,
				Problem: fmt.Sprintf("ttl.max is %s, and step-ca signs for at least %s", role.MaxTTL, limit),
				Remedy:  `"claims": {"minTLSCertDuration": "1s"}`,
			})
		}
		if limit, err := time.ParseDuration(c.MaxTLS); err == nil && role.MaxTTL > limit {
			found = append(found, plugins.Finding{
				Severity: plugins.Weakens, Subject: "role " + role.Name,
				Problem: fmt.Sprintf("ttl.max is %s, and step-ca signs for at most %s", role.MaxTTL, limit),
				Remedy:  fmt.Sprintf("ttl: {max: %s}", limit),
			})
		}
	}
	return found
}

func (r *remote) checkCRL(ctx context.Context) []plugins.Finding {
	if err := r.fetchFor(ctx, fetchEvery); err != nil {
		remedy := `see that "crl": {"enabled": true} is in ca.json and step-ca is up`
		if errors.Is(err, plugins.ErrMisconfigured) {
			remedy = `"crl": {"enabled": true, "generateOnRevoke": true, "cacheDuration": "60s"} in ca.json, and a "db"`
		}
		return []plugins.Finding{broken("CRL", err.Error(), remedy)}
	}
	c := r.current.Load()
	var found []plugins.Finding
	if validity := c.nextUpdate.Sub(c.signed); validity > r.settings.CRLValidity {
		found = append(found, broken("CRL", fmt.Sprintf("it is valid for %s, and the exposure of roles is computed with %s", validity, r.settings.CRLValidity),
			fmt.Sprintf(`"crl": {"cacheDuration": "%s"} in ca.json`, r.settings.CRLValidity)))
	}
	if u := r.settings.CRLURL; u != "" && len(c.points) > 0 && !slices.Contains(c.points, u) {
		found = append(found, plugins.Finding{
			Severity: plugins.Weakens, Subject: "CRL",
			Problem: "it names " + c.points[0] + " as its URL, and certificates name " + u + ": OpenSSL then says `different CRL scope`",
			Remedy:  `"crl": {"idpURL": "` + u + `"} in ca.json`,
		})
	}
	return found
}

func broken(subject, problem, remedy string) plugins.Finding {
	return plugins.Finding{Severity: plugins.Breaks, Subject: subject, Problem: problem, Remedy: remedy}
}
