package audit_test

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gowebpki/jcs"
	"pgregory.net/rapid"

	"github.com/stint-dev/stint/broker/audit"
)

// fill sets every field of a value at random, so that a field that is new is covered without being named here.
func fill(t *rapid.T, v reflect.Value) { //nolint:cyclop // one case a kind
	switch v.Kind() { //nolint:exhaustive // the other kinds fail
	case reflect.Pointer:
		if rapid.Bool().Draw(t, "set") {
			v.Set(reflect.New(v.Type().Elem()))
			fill(t, v.Elem())
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			zone := time.FixedZone("x", rapid.IntRange(-12, 12).Draw(t, "zone")*3600)
			at := time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "s"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns")).In(zone)
			v.Set(reflect.ValueOf(at))
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).Name != "Texts" {
				fill(t, v.Field(i))
			}
		}
	case reflect.String:
		v.SetString(rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"", "plain", "<&>", "\u2028", "\x00\x7f\"\\/", "é", "\xff"})).Draw(t, "string"))
	case reflect.Int, reflect.Int64:
		v.SetInt(rapid.Int64Range(-1<<53, 1<<53).Draw(t, "int"))
	case reflect.Uint32:
		v.SetUint(uint64(rapid.Uint32().Draw(t, "uint")))
	case reflect.Uint8:
		v.SetUint(uint64(rapid.Byte().Draw(t, "byte")))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), rapid.IntRange(0, 3).Draw(t, "len"), 3))
		for i := range v.Len() {
			fill(t, v.Index(i))
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(t, v.Index(i))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range rapid.IntRange(0, 3).Draw(t, "len") {
			key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			fill(t, key)
			fill(t, value)
			v.SetMapIndex(key, value)
		}
	default:
		t.Fatalf("a record has a field of kind %s: teach the test and the leaf about it", v.Kind())
	}
}

// inUTC sets every time in a value to UTC, as leaves have them.
func inUTC(v reflect.Value) {
	switch v.Kind() { //nolint:exhaustive // the other kinds hold no times
	case reflect.Pointer:
		if !v.IsNil() {
			inUTC(v.Elem())
		}
	case reflect.Struct:
		if at, ok := reflect.TypeAssert[*time.Time](v.Addr()); ok {
			*at = at.UTC()
			return
		}
		for _, field := range v.Fields() {
			inUTC(field)
		}
	}
}

// TestLeafIsCanonical: a leaf is what RFC 8785 makes of the record's JSON, whatever the record holds.
func TestLeafIsCanonical(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var r audit.Record
		fill(t, reflect.ValueOf(&r).Elem())
		e, _, err := audit.Encode(r, 7)
		if err != nil {
			t.Fatal(err)
		}
		r.V = 1
		inUTC(reflect.ValueOf(&r))
		raw, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		want, err := jcs.Transform(raw)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), string(e.JSON)); diff != "" {
			t.Fatalf("leaf (-want +got):\n%s", diff)
		}
	})
}

func TestTextsAreHashed(t *testing.T) {
	t.Parallel()
	r := audit.Record{Event: audit.TaskDeclared, Task: taskA, Texts: map[string]string{"a": "same", "b": "same"}}
	e, texts, err := audit.Encode(r, 3)
	if err != nil {
		t.Fatal(err)
	}
	var got audit.Record
	if err := json.Unmarshal(e.JSON, &got); err != nil {
		t.Fatal(err)
	}
	if len(texts) != 2 || len(got.Hashes) != 2 || got.Hashes["a"] == got.Hashes["b"] {
		t.Fatalf("texts %v, hashes %v", texts, got.Hashes)
	}
	for _, x := range texts {
		if x.Index != 3 || x.Text != "same" || audit.HashOf(x.Salt, x.Text) != got.Hashes[x.Field] {
			t.Errorf("text %+v", x)
		}
	}
	if len(r.Texts) != 2 || r.Hashes != nil {
		t.Error("the caller's record was changed")
	}
}

func BenchmarkEncode(b *testing.B) {
	r := story()[3]
	b.Run("leaf", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, _, err := audit.Encode(r, 1); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("jcs", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			raw, err := json.Marshal(r)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := jcs.Transform(raw); err != nil {
				b.Fatal(err)
			}
		}
	})
}
