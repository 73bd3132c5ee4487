package acceptance_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// Done when (5): a receipt verifies on another machine with the public key alone; with one byte of one record changed it
// does not, and the command says which.
func TestReceiptVerifiesElsewhere(t *testing.T) {
	t.Parallel()
	d := startDev(t, []string{"--no-vault"})
	d.stint(t, "run", "--purpose", "try-it", "--role", "web-client", "--", "true").exits(t, 0)
	task := decode[struct{ Tasks []struct{ ShortName string } }](t, d.stint(t, "task", "list", "-o", "json").exits(t, 0).stdout).Tasks[0].ShortName
	d.stint(t, "audit", "receipt", task, "-f", "receipt.json").exits(t, 0)
	key := strings.TrimSpace(d.stint(t, "audit", "pubkey").exits(t, 0).stdout)
	receipt := read(t, d.dir, "receipt.json")

	// Another machine: an empty directory, nothing of Stint in the environment, and no network where that can be had.
	other := t.TempDir()
	verify := func(receipt []byte) result {
		write(t, other+"/receipt.json", receipt)
		return run(t, call{
			args: append(offline(t), program(t, "stint"), "audit", "verify", "receipt.json", "--pubkey", key), env: []string{"PATH=/usr/bin:/bin", "GORACE=atexit_sleep_ms=0"}, dir: other,
		})
	}
	good := verify(receipt).exits(t, 0)
	for _, want := range []string{"Verified", task, "closed (completed)", "web-client · stepca/dev", "ended, crl", "0 leases without a proven end"} {
		if !strings.Contains(good.stdout, want) {
			t.Errorf("not told: %q in %s", want, good)
		}
	}
	for _, record := range records(t, receipt) {
		for _, at := range []int{0, len(record.JSON) / 2, len(record.JSON) - 1} {
			changed := change(t, receipt, record.JSON, at)
			bad := verify(changed).exits(t, 1)
			if want := fmt.Sprintf("record %d: ", record.Index); !strings.Contains(bad.stderr, want) || bad.stdout != "" {
				t.Errorf("byte %d of record %d was changed, and it says: %s", at, record.Index, bad)
			}
		}
	}
	wrongKey := run(t, call{
		args: []string{program(t, "stint"), "audit", "verify", "receipt.json", "--pubkey", flip(key)}, env: d.plain(), dir: d.dir,
	})
	if wrongKey.code == 0 {
		t.Errorf("it verifies with another key: %s", wrongKey)
	}
}

type record struct {
	Index int64  `json:"index"`
	JSON  string `json:"json"`
}

func records(tb testing.TB, receipt []byte) []record {
	tb.Helper()
	doc := decode[struct{ Records []record }](tb, string(receipt))
	if len(doc.Records) < 4 {
		tb.Fatalf("%d records in %s", len(doc.Records), receipt)
	}
	return doc.Records
}

// change returns the receipt with one byte of one record changed to another that JSON can hold.
func change(tb testing.TB, receipt []byte, text string, at int) []byte {
	tb.Helper()
	other := []byte(text)
	if other[at]++; other[at] == '"' || other[at] == '\\' {
		other[at]++
	}
	before, after := quote(tb, text), quote(tb, string(other))
	if bytes.Count(receipt, before) != 1 {
		tb.Fatalf("the receipt does not hold %s once", before)
	}
	return bytes.Replace(receipt, before, after, 1)
}

// quote writes a JSON string as the receipt does.
func quote(tb testing.TB, text string) []byte {
	tb.Helper()
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(text); err != nil {
		tb.Fatal(err)
	}
	return bytes.TrimSpace(b.Bytes())
}

// flip changes the last letter.
func flip(key string) string {
	last := "A"
	if strings.HasSuffix(key, last) {
		last = "B"
	}
	return key[:len(key)-1] + last
}

// offline returns the start of a command line that takes the network away, empty where that is not permitted.
func offline(tb testing.TB) []string {
	tb.Helper()
	prefix := []string{"/usr/bin/unshare", "--net", "--map-root-user"}
	if err := exec.CommandContext(tb.Context(), prefix[0], append(prefix[1:], "/bin/true")...).Run(); err != nil {
		tb.Logf("the network stays: %s: %v", strings.Join(prefix, " "), err)
		return nil
	}
	return prefix
}
