package agent

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
)

func FuzzParseHead(f *testing.F) {
	root := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for _, seed := range []string{"", "a\n1\n" + root + "\n", "a\n01\n" + root, "a\n-1\n" + root, "a\n1\nshort", "\n1\n" + root, "a\n1\n" + root + "\nmore\n"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		h, err := parseHead(body)
		if err != nil {
			return
		}
		if h.origin == "" || h.size < 0 {
			t.Fatalf("%q was accepted as %v", body, h)
		}
		if want := fmt.Sprintf("%s\n%d\n%s", h.origin, h.size, base64.StdEncoding.EncodeToString(h.root[:])); !strings.HasPrefix(body, want) {
			t.Fatalf("%q was read as %q", body, want)
		}
	})
}
