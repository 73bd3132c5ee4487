package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v4"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Format is how data is written.
type Format string

// The formats. JSON and YAML are a contract, see docs/cli.md; a table is for people and may change.
const (
	FormatTable Format = "table"
	FormatJSON  Format = "json"
	FormatYAML  Format = "yaml"
	FormatWide  Format = "wide" // a table with more columns, where a command says so
)

const indent = "  "

// Write writes a value as JSON or YAML. A protobuf message is written by the protobuf JSON mapping: lowerCamelCase names,
// times in RFC 3339, durations as "15s", 64-bit numbers as strings, empty values present. Any other value is written as
// encoding/json does.
func Write(w io.Writer, format Format, value any) error {
	doc, err := encode(value)
	if err != nil {
		return err
	}
	if format == FormatYAML {
		return writeYAML(w, doc)
	}
	var b bytes.Buffer
	if err = json.Indent(&b, doc, "", indent); err != nil {
		return fmt.Errorf("indent: %w", err)
	}
	b.WriteByte('\n')
	_, err = w.Write(escapeJSON(b.Bytes()))
	return err
}

// WriteLine writes a value as JSON on one line.
func WriteLine(w io.Writer, value any) error {
	doc, err := encode(value)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	if err = json.Compact(&b, doc); err != nil { // protojson varies its spaces on purpose
		return fmt.Errorf("compact: %w", err)
	}
	b.WriteByte('\n')
	_, err = w.Write(escapeJSON(b.Bytes()))
	return err
}

func encode(value any) ([]byte, error) {
	message, ok := value.(proto.Message)
	if !ok {
		doc, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("encode: %w", err)
		}
		return doc, nil
	}
	doc, err := protojson.MarshalOptions{EmitDefaultValues: true}.Marshal(message)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return doc, nil
}

// writeYAML writes the same document as YAML, names in the same order.
func writeYAML(w io.Writer, doc []byte) error {
	var node yaml.Node
	if err := yaml.Unmarshal(doc, &node); err != nil { // JSON is YAML
		return fmt.Errorf("encode: %w", err)
	}
	plainStyle(&node)
	var b bytes.Buffer
	encoder := yaml.NewEncoder(&b)
	encoder.SetIndent(len(indent))
	if err := encoder.Encode(&node); err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	return Document(w, b.String())
}

func plainStyle(node *yaml.Node) {
	node.Style = 0
	for _, child := range node.Content {
		plainStyle(child)
	}
}

// Document writes text of several lines, each cleaned.
func Document(w io.Writer, text string) error {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(Clean(strings.TrimRight(line, "\r\n")))
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}
