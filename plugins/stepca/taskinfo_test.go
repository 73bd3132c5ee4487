package stepca

import (
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"testing"
)

// TestTaskInfo goes there and back, reads a later version, and refuses damage.
func TestTaskInfo(t *testing.T) {
	want := TaskInfo{Version: 1, TaskID: testTask, ManifestHash: [32]byte{9}, Role: "rôle"}
	der, err := want.Marshal()
	must(t, err)
	if got, perr := ParseTaskInfo(der); perr != nil || got != want {
		t.Errorf("read %+v, %v, want %+v", got, perr, want)
	}
	later, err := asn1.Marshal(struct {
		Version int
		TaskID  string `asn1:"utf8"`
		Hash    []byte
		Role    string `asn1:"utf8"`
		Subject string `asn1:"utf8"`
	}{2, testTask, want.ManifestHash[:], "r", "user@example.org"})
	must(t, err)
	if got, perr := ParseTaskInfo(later); perr != nil || got.Version != 2 || got.Role != "r" {
		t.Errorf("a later version: %+v, %v", got, perr)
	}
	short, err := asn1.Marshal(taskInfo{1, testTask, []byte{1}, "r"})
	must(t, err)
	long, err := asn1.Marshal(taskInfo{1, testTask, make([]byte, 33), "r"})
	must(t, err)
	old, err := asn1.Marshal(taskInfo{0, testTask, make([]byte, 32), "r"})
	must(t, err)
	noTask, err := asn1.Marshal(taskInfo{1, "x", make([]byte, 32), "r"})
	must(t, err)
	for name, der := range map[string][]byte{
		"empty": nil, "trailing": append(der, 0), "cut": der[:20], "short hash": short, "long hash": long, "version 0": old, "no task": noTask,
	} {
		if got, err := ParseTaskInfo(der); !errors.Is(err, ErrBadTaskInfo) {
			t.Errorf("%s: read %+v, %v, want ErrBadTaskInfo", name, got, err)
		}
	}
	if _, err := TaskInfoOf(&x509.Certificate{}, ""); !errors.Is(err, ErrNoTaskInfo) {
		t.Errorf("no extension: %v", err)
	}
}

// FuzzParseTaskInfo: nothing panics, and what is read of version 1 is what was written.
func FuzzParseTaskInfo(f *testing.F) {
	der, err := TaskInfo{TaskID: testTask, Role: "r"}.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Fuzz(func(t *testing.T, der []byte) {
		info, err := ParseTaskInfo(der)
		if err != nil {
			return
		}
		again, err := info.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		info.Version = infoVersion
		if got, err := ParseTaskInfo(again); err != nil || got != info {
			t.Fatalf("%+v became %+v, %v", info, got, err)
		}
	})
}
