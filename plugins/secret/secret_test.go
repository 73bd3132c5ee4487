package secret_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/stint-dev/stint/plugins/secret"
)

const material = "s3cr3t-material"

type holder struct {
	Public  secret.Value
	private secret.Value
}

// TestNoVerbPrintsTheMaterial formats a value in every shape a program is likely to hold it in.
func TestNoVerbPrintsTheMaterial(t *testing.T) {
	v := secret.FromString(material)
	h := holder{Public: v, private: v}
	_ = h.private
	shapes := map[string]any{
		"value": v, "pointer": &v, "struct": h, "struct pointer": &h,
		"slice": []secret.Value{v}, "map": map[string]secret.Value{"k": v}, "any": any(v), "error": fmt.Errorf("x: %v", v),
	}
	for name, shape := range shapes {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%b", "%o", "%c", "%U", "%e", "%g", "%t", "%p"} {
			out := fmt.Sprintf(verb, shape)
			for _, leak := range []string{material, fmt.Sprintf("%x", material), "115 51 99"} {
				if strings.Contains(strings.ToLower(out), leak) {
					t.Errorf("%s with %s printed the material: %s", name, verb, out)
				}
			}
		}
	}
}

func TestEncodersRefuse(t *testing.T) {
	if _, err := json.Marshal(holder{Public: secret.FromString(material)}); !errors.Is(err, secret.ErrNotEncodable) {
		t.Fatalf("json.Marshal: %v, want ErrNotEncodable", err)
	}
}

func TestZapDoesNotPrintTheMaterial(t *testing.T) {
	core, logs := observer.New(zapcore.DebugLevel)
	v := secret.FromString(material)
	zap.New(core).Info("m", zap.Stringer("s", v), zap.String("f", fmt.Sprint(v)))
	for _, e := range logs.All() {
		if out := fmt.Sprint(e.ContextMap()); strings.Contains(out, material) || !strings.Contains(out, "[secret]") {
			t.Fatalf("zap printed %s", out)
		}
	}
}

func TestExposeAndWipe(t *testing.T) {
	v := secret.FromString(material)
	if string(v.Expose()) != material || v.IsZero() {
		t.Fatal("the material did not come back")
	}
	if !v.Equal(secret.FromString(material)) || v.Equal(secret.FromString("other")) {
		t.Fatal("Equal is wrong")
	}
	v.Wipe()
	if strings.Contains(string(v.Expose()), "s3") {
		t.Fatal("Wipe left material behind")
	}
	var zero secret.Value
	if !zero.IsZero() || zero.Expose() != nil {
		t.Fatal("the zero Value is not empty")
	}
}
