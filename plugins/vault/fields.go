package vault

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/secret"
	"github.com/stint-dev/stint/plugins/vault/internal/recipe"
	"github.com/stint-dev/stint/plugins/vault/internal/rest"
)

// fields copies the answer's data into secrets, under the role's names where it states them, and finds the public
// reference. Strings, numbers, booleans and lists of strings (one a line) become fields; other shapes only make an
// error where the role asks for them.
func (a *answer) fields() (map[string]secret.Value, string, error) {
	data := a.data()
	defer wipe(data)
	out := make(map[string]secret.Value, len(data))
	if len(a.recipe.Fields) == 0 {
		for key, raw := range data {
			if text, ok := fieldText(raw); ok {
				out[key] = secret.New(text)
			}
		}
	}
	for to, from := range a.recipe.Fields {
		text, ok := fieldText(data[from])
		if !ok {
			return out, "", fmt.Errorf("%w: %s gives no %q that could be a field", plugins.ErrMisconfigured, a.path, from)
		}
		out[to] = secret.New(text)
	}
	if len(out) == 0 {
		return out, "", fmt.Errorf("%w: %s gives no data", plugins.ErrMisconfigured, a.path)
	}
	ref, err := a.publicRef(data)
	return out, ref, err
}

// data is the answer's data; of the second version of the KV engine, what lies inside it.
func (a *answer) data() map[string]json.RawMessage {
	data := a.reply.Data
	inner, hasData := data["data"]
	_, hasMetadata := data["metadata"]
	if a.recipe.Kind != recipe.Static || !hasData || !hasMetadata {
		return data
	}
	var value map[string]json.RawMessage
	if json.Unmarshal(inner, &value) != nil {
		return data
	}
	return value
}

func wipe(data map[string]json.RawMessage) {
	for _, raw := range data {
		clear(raw)
	}
}

// fieldText returns a field's bytes, and false for a shape that is no field.
func fieldText(raw json.RawMessage) ([]byte, bool) {
	if len(raw) == 0 {
		return nil, false
	}
	switch c := raw[0]; {
	case c == '"':
		text, err := rest.Text(raw)
		return text, err == nil
	case c == '-' || (c >= '0' && c <= '9') || c == 't' || c == 'f':
		return bytes.Clone(raw), true
	case c == '[':
		var lines []json.RawMessage
		if json.Unmarshal(raw, &lines) != nil || len(lines) == 0 {
			return nil, false
		}
		return joinLines(lines)
	}
	return nil, false
}

func joinLines(lines []json.RawMessage) ([]byte, bool) {
	var out []byte
	for i, line := range lines {
		text, err := rest.Text(line)
		if err != nil {
			return nil, false
		}
		if i > 0 {
			out = append(out, '\n')
		}
		out = append(out, text...)
		clear(text)
	}
	return out, true
}

// publicRef names the credential to people: what the role says, else a user name, a serial number or a key ID, which
// engines make anew for each lease, else the end of the lease ID. An OTP's user name is the same each time, so the host
// stands with it.
func (a *answer) publicRef(data map[string]json.RawMessage) (string, error) {
	text := func(key string) string {
		found, ok := fieldText(data[key])
		if !ok {
			return ""
		}
		return string(found)
	}
	if key := a.recipe.PublicRef; key != "" {
		ref := text(key)
		if ref == "" {
			return "", fmt.Errorf("%w: %s gives no %q for vault.public_ref", plugins.ErrMisconfigured, a.path, key)
		}
		return ref, nil
	}
	if a.recipe.Kind == recipe.Static {
		return a.path, nil
	}
	if text("key_type") == "otp" {
		return text("username") + "@" + text("ip"), nil
	}
	for _, key := range []string{"username", "serial_number", "access_key"} {
		if ref := text(key); ref != "" {
			return ref, nil
		}
	}
	return afterLast(a.handle.Lease, "/"), nil
}
