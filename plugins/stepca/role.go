package stepca

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/template"
	"unicode"
	"unicode/utf8"

	"github.com/stint-dev/stint/plugins"
)

// maxCommonName is ub-common-name of RFC 5280 appendix A, in characters.
const maxCommonName = 64

// errCommonName says that a role's template made no common name that a certificate can carry.
var errCommonName = errors.New("common_name")

// roleConfig is the section "certificate" of a role.
type roleConfig struct {
	// Usages are client_auth and server_auth; client_auth when left out.
	Usages []string `json:"usages"`
	// CommonName is a text/template over .agent.name, .agent.id and .task.name; no subject when left out.
	CommonName string `json:"common_name"`
	// DNSNames are exact names, or patterns such as *.jobs.example.org whose star is one label.
	DNSNames []string `json:"dns_names"`
}

// role is a checked section.
type role struct {
	usages     []x509.ExtKeyUsage
	commonName *template.Template // nil for none
	dns        []string
}

// parseRole reads and checks the section; every error wraps ErrInvalidRole and names the key.
func parseRole(config []byte) (role, error) {
	raw, err := decodeRole(config)
	if err != nil {
		return role{}, fmt.Errorf("%w: certificate: %w", plugins.ErrInvalidRole, err)
	}
	var r role
	if r.usages, err = parseUsages(raw.Usages); err != nil {
		return role{}, err
	}
	if r.commonName, err = parseCommonName(raw.CommonName); err != nil {
		return role{}, err
	}
	for _, name := range raw.DNSNames {
		if !isDNSName(strings.TrimPrefix(name, "*.")) {
			return role{}, fmt.Errorf("%w: certificate.dns_names: %q is no lower-case DNS name, nor *. and one", plugins.ErrInvalidRole, name)
		}
	}
	r.dns = raw.DNSNames
	return r, nil
}

func decodeRole(config []byte) (roleConfig, error) {
	var raw roleConfig
	if len(config) == 0 {
		return raw, nil
	}
	dec := json.NewDecoder(bytes.NewReader(config))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&raw); err != nil {
		return raw, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return raw, errors.New("more than one value")
	}
	return raw, nil
}

func parseUsages(names []string) ([]x509.ExtKeyUsage, error) {
	if len(names) == 0 {
		return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, nil
	}
	usages := make([]x509.ExtKeyUsage, 0, len(names))
	for _, name := range names {
		var usage x509.ExtKeyUsage
		switch name {
		case "client_auth":
			usage = x509.ExtKeyUsageClientAuth
		case "server_auth":
			usage = x509.ExtKeyUsageServerAuth
		default:
			return nil, fmt.Errorf("%w: certificate.usages: %q is unknown; known are client_auth, server_auth", plugins.ErrInvalidRole, name)
		}
		if slices.Contains(usages, usage) {
			return nil, fmt.Errorf("%w: certificate.usages: %s stands there twice", plugins.ErrInvalidRole, name)
		}
		usages = append(usages, usage)
	}
	return usages, nil
}

func parseCommonName(text string) (*template.Template, error) {
	if text == "" {
		return nil, nil //nolint:nilnil // no template is no common name
	}
	t, err := template.New("common_name").Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%w: certificate.common_name: %w", plugins.ErrInvalidRole, err)
	}
	if _, err := render(t, names{agentName: "a", agentID: "a", taskName: "a"}); err != nil {
		return nil, fmt.Errorf("%w: certificate.%w", plugins.ErrInvalidRole, err)
	}
	return t, nil
}

// names are what a common name can be made of.
type names struct {
	agentName, agentID, taskName string
}

// subject returns the common name for a task, or "" where the role sets none. Errors wrap errCommonName.
func (r role) subject(n names) (string, error) {
	if r.commonName == nil {
		return "", nil
	}
	return render(r.commonName, n)
}

func render(t *template.Template, n names) (string, error) {
	out := limited{limit: maxCommonName * utf8.UTFMax}
	err := t.Execute(&out, map[string]map[string]string{
		"agent": {"name": n.agentName, "id": n.agentID},
		"task":  {"name": n.taskName},
	})
	if err != nil {
		return "", fmt.Errorf("%w: %w", errCommonName, err)
	}
	text := out.String()
	unprintable := func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }
	switch n := utf8.RuneCountInString(text); {
	case strings.TrimSpace(text) != text || text == "":
		return "", fmt.Errorf("%w: it is empty, or begins or ends with a space", errCommonName)
	case n > maxCommonName:
		return "", fmt.Errorf("%w: it has %d characters, %d are allowed", errCommonName, n, maxCommonName)
	case strings.ContainsFunc(text, unprintable):
		return "", fmt.Errorf("%w: it has unprintable characters", errCommonName)
	}
	return text, nil
}

// limited is a buffer that refuses to grow past its limit, so that a template cannot fill the memory.
type limited struct {
	strings.Builder

	limit int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > l.limit {
		return 0, fmt.Errorf("more than %d bytes", l.limit)
	}
	return l.Builder.Write(p)
}

// allows reports whether a request may ask for the name.
func (r role) allows(name string) bool {
	if !isDNSName(name) {
		return false
	}
	_, parent, _ := strings.Cut(name, ".")
	return slices.ContainsFunc(r.dns, func(allowed string) bool {
		suffix, pattern := strings.CutPrefix(allowed, "*.")
		return name == allowed || (pattern && parent == suffix)
	})
}

// names returns the DNS names of a certificate: those asked for, or all the role's exact ones where none were.
func (r role) names(asked []string) []string {
	if len(asked) > 0 {
		return asked
	}
	return slices.DeleteFunc(slices.Clone(r.dns), func(n string) bool { return strings.HasPrefix(n, "*.") })
}

// isDNSName reports whether text is a lower-case host name in the preferred syntax (RFC 1034 section 3.5, RFC 1123
// section 2.1) and no IPv4 address.
func isDNSName(text string) bool {
	last := text[strings.LastIndexByte(text, '.')+1:]
	if text == "" || len(text) > 253 || strings.Trim(last, "0123456789") == "" {
		return false
	}
	for label := range strings.SplitSeq(text, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	return true
}
