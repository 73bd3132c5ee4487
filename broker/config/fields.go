package config

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"
	"github.com/zclconf/go-cty/cty/gocty"
)

// maxSocketPath is the longest path of a unix socket in bytes (sun_path of unix(7), less its terminating zero).
const maxSocketPath = 107

// must makes a field required.
func must(f field) field {
	f.required = true
	return f
}

// parsed is a field of a string that parse turns into a T.
func parsed[T any](dst *T, parse func(string) (T, error)) field {
	return field{set: func(value cty.Value) error {
		s, err := stringOf(value)
		if err != nil {
			return err
		}
		v, err := parse(s)
		if err != nil {
			return err
		}
		*dst = v
		return nil
	}}
}

// parsedList is a field of a list of strings that parse turns into Ts.
func parsedList[T any](dst *[]T, parse func(string) (T, error)) field {
	return field{set: func(value cty.Value) error {
		if !value.CanIterateElements() || value.Type().IsMapType() || value.Type().IsObjectType() {
			return errors.New("write a list of strings in square brackets")
		}
		var list []T
		for _, element := range value.Elements() {
			s, err := stringOf(element)
			if err != nil {
				return err
			}
			v, err := parse(s)
			if err != nil {
				return err
			}
			list = append(list, v)
		}
		*dst = list
		return nil
	}}
}

// text is a field of a string that every check accepts.
func text(dst *string, checks ...func(string) error) field {
	return parsed(dst, func(s string) (string, error) {
		for _, check := range checks {
			if err := check(s); err != nil {
				return "", err
			}
		}
		return s, nil
	})
}

// flag is a field of true or false.
func flag(dst *bool) field {
	return field{set: func(value cty.Value) error {
		v, err := convert.Convert(value, cty.Bool)
		if err != nil || v.IsNull() {
			return errors.New("write true or false")
		}
		*dst = v.True()
		return nil
	}}
}

// count is a field of a whole number within bounds.
func count(dst *int, least, most int) field {
	return field{set: func(value cty.Value) error {
		v, err := convert.Convert(value, cty.Number)
		if err != nil {
			return errors.New("write a whole number")
		}
		var n int
		if err := gocty.FromCtyValue(v, &n); err != nil || n < least || n > most {
			return fmt.Errorf("write a whole number between %d and %d", least, most)
		}
		*dst = n
		return nil
	}}
}

// duration is a field of a duration within bounds, such as "10m".
func duration(dst *time.Duration, least, most time.Duration) field {
	return parsed(dst, func(s string) (time.Duration, error) {
		v, err := time.ParseDuration(s)
		if err != nil {
			return 0, fmt.Errorf("duration %q: write a number with a unit, as in 90s, 10m or 1h30m", s)
		}
		if v < least || v > most {
			return 0, fmt.Errorf("duration %q is not between %s and %s", s, short(least), short(most))
		}
		return v, nil
	})
}

// size is a field of a number of bytes within bounds, such as "512MiB".
func size(dst *ByteSize, least, most ByteSize) field {
	return parsed(dst, func(s string) (ByteSize, error) {
		v, err := ParseByteSize(s)
		if err != nil {
			return 0, err
		}
		if v < least || v > most {
			return 0, fmt.Errorf("size %q is not between %s and %s", s, least, most)
		}
		return v, nil
	})
}

// stringOf returns a string or says what was found instead. It does not turn numbers into strings: "10" of a duration
// and 10 would look alike.
func stringOf(value cty.Value) (string, error) {
	if value.IsNull() || !value.IsKnown() || value.Type() != cty.String {
		return "", fmt.Errorf("write a string in quotes, not a %s", value.Type().FriendlyName())
	}
	return value.AsString(), nil
}

// short returns a duration without its zero parts: "10m", not "10m0s".
func short(d time.Duration) string {
	s := strings.TrimSuffix(d.String(), "m0s")
	if s != d.String() {
		s += "m"
	}
	if hours, ok := strings.CutSuffix(s, "h0m"); ok {
		return hours + "h"
	}
	return s
}

// oneOf accepts the listed words.
func oneOf(allowed ...string) func(string) error {
	return func(s string) error {
		if slices.Contains(allowed, s) {
			return nil
		}
		return fmt.Errorf("unknown value %q; there are %s", s, strings.Join(allowed, ", "))
	}
}

// absolute accepts absolute paths: a daemon's working directory is nobody's choice.
func absolute(s string) error {
	if filepath.IsAbs(s) {
		return nil
	}
	return fmt.Errorf("path %q must be absolute", s)
}

// orEmpty accepts "" besides what check accepts.
func orEmpty(check func(string) error) func(string) error {
	return func(s string) error {
		if s == "" {
			return nil
		}
		return check(s)
	}
}

// hostPort accepts addresses to listen on: a host that may be empty and a port that is a number.
func hostPort(s string) error {
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("address %q: write host:port, as in 0.0.0.0:7846", s)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("address %q: %q is not a port number", s, port)
	}
	return nil
}

// socketPath turns unix:///path into the path; "" stays.
func socketPath(s string) (string, error) {
	if s == "" {
		return "", nil
	}
	path, ok := strings.CutPrefix(s, "unix://")
	if !ok {
		return "", fmt.Errorf("address %q must begin with unix://", s)
	}
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("address %q: the path must be absolute, as in unix:///run/stint/admin.sock", s)
	}
	if len(path) > maxSocketPath {
		return "", fmt.Errorf("address %q: the path has %d bytes, unix sockets take %d", s, len(path), maxSocketPath)
	}
	return path, nil
}

// workloadAPI accepts addresses of a Workload API (SPIFFE Workload Endpoint, section 4).
func workloadAPI(s string) error {
	if strings.HasPrefix(s, "unix:") {
		_, err := socketPath(s)
		return err
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "tcp" || net.ParseIP(u.Hostname()) == nil || u.Port() == "" {
		return fmt.Errorf("address %q: write unix:///path or tcp://ip:port", s)
	}
	return hostPort(u.Host)
}

// origin accepts names of a log (C2SP tlog-checkpoint: no space, no plus sign).
func origin(s string) error {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' || r == '+' }) {
		return fmt.Errorf("origin %q: write a name without spaces and plus signs, as in stint.example.org/audit", s)
	}
	return nil
}

// trustDomain reads a trust domain's name.
func trustDomain(s string) (spiffeid.TrustDomain, error) {
	if strings.Contains(s, ":") {
		return spiffeid.TrustDomain{}, fmt.Errorf("trust domain %q: write the name alone, without spiffe://", s)
	}
	td, err := spiffeid.TrustDomainFromString(s)
	if err != nil {
		return spiffeid.TrustDomain{}, fmt.Errorf("trust domain %q: %w", s, err)
	}
	return td, nil
}

// spiffeID reads a SPIFFE ID that has a path.
func spiffeID(s string) (spiffeid.ID, error) {
	id, err := spiffeid.FromString(s)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("spiffe id %q: %w", s, err)
	}
	if id.Path() == "" {
		return spiffeid.ID{}, fmt.Errorf("spiffe id %q has no path", s)
	}
	return id, nil
}
