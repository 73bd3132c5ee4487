package handover

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"

	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
	"github.com/stint-dev/stint/sdk/agent"
)

// Names of files and template fields of a certificate, and the variables that a role without delivery of its own sets.
const (
	certFile = "cert.pem"
	keyFile  = "key.pem"
	caFile   = "ca.pem"

	fieldDir  = "dir"
	fieldCert = "cert_file"
	fieldKey  = "key_file"
	fieldCA   = "ca_file"

	// EnvCredentials holds the folder, with one folder for each role in it.
	EnvCredentials = "STINT_CREDENTIALS" //nolint:gosec // a name
)

const maxRendered = 64 << 10 // bytes of one variable or file; Linux takes 128 KiB a variable

var errTooLong = errors.New("longer than 64 KiB")

// Environment collects what a command gets in addition to its own environment.
type Environment struct {
	folder *Folder
	values map[string]string
	from   map[string]string // the role that set it
}

// NewEnvironment returns an environment that holds the folder's path.
func NewEnvironment(folder *Folder) *Environment {
	return &Environment{
		folder: folder, values: map[string]string{EnvCredentials: folder.Path()}, from: map[string]string{EnvCredentials: "stint"},
	}
}

// Add hands over one credential as its role says. A certificate is always written to files; a secret whose role says
// nothing is written as one file for each field.
func (e *Environment) Add(role string, c *agent.Credential) error {
	if err := e.add(role, c); err != nil {
		return fmt.Errorf("hand over %s: %w", role, err)
	}
	return nil
}

// List returns "NAME=value" for exec, after the given environment, so that it comes before it.
func (e *Environment) List(base []string) []string {
	out := slices.DeleteFunc(slices.Clone(base), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		_, replaced := e.values[name]
		return replaced
	})
	for _, name := range slices.Sorted(maps.Keys(e.values)) {
		out = append(out, name+"="+e.values[name])
	}
	return out
}

func (e *Environment) add(role string, c *agent.Credential) error {
	if !filepath.IsLocal(role) || strings.ContainsRune(role, filepath.Separator) {
		return errors.New("its name is no file name")
	}
	dir := filepath.Join(e.folder.Path(), role)
	if err := os.Mkdir(dir, folderMode); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()

	how := c.Delivery
	bare := len(how.GetEnv())+len(how.GetWith())+len(how.GetFiles()) == 0
	fields := map[string]string{fieldDir: dir}
	if c.Certificate != nil {
		if err := writeCertificate(root, c.Certificate); err != nil {
			return err
		}
		fields[fieldCert], fields[fieldKey] = filepath.Join(dir, certFile), filepath.Join(dir, keyFile)
		fields[fieldCA] = filepath.Join(dir, caFile)
		if bare {
			how = defaultDelivery()
		}
	}
	for name, value := range c.Fields {
		fields[name] = string(value.Expose())
		if bare {
			if err := write(root, name, value.Expose()); err != nil {
				return err
			}
		}
	}
	return e.deliver(role, root, how, fields)
}

// defaultDelivery is what a certificate's role sets when it says nothing.
func defaultDelivery() *stintv1.Delivery {
	return &stintv1.Delivery{Env: map[string]string{
		"CERT": "{{ ." + fieldCert + " }}", "KEY": "{{ ." + fieldKey + " }}", "CA": "{{ ." + fieldCA + " }}",
	}}
}

// deliver fills the templates of a role. Values are never templates themselves.
func (e *Environment) deliver(role string, root *os.Root, how *stintv1.Delivery, fields map[string]string) error {
	for name, text := range how.GetFiles() {
		content, err := expand(name, text, fields)
		if err != nil {
			return err
		}
		if err := write(root, name, content); err != nil {
			return err
		}
	}
	for name, text := range how.GetEnv() {
		value, err := expand(name, text, fields)
		if err != nil {
			return err
		}
		if err := e.set(role, name, string(value)); err != nil {
			return err
		}
	}
	for name, value := range how.GetWith() {
		if err := e.set(role, name, value); err != nil {
			return err
		}
	}
	return nil
}

// set takes a variable; two roles that set the same one are an error.
func (e *Environment) set(role, name, value string) error {
	if name == "" || strings.ContainsAny(name, "=\x00") {
		return fmt.Errorf("%q is no name of a variable", name)
	}
	if strings.ContainsRune(value, 0) {
		return fmt.Errorf("the value for %s holds a zero byte; let the role deliver a file", name)
	}
	if other, ok := e.from[name]; ok {
		return fmt.Errorf("%s is set by %s already", name, other)
	}
	e.values[name], e.from[name] = value, role
	return nil
}

// expand fills one template. An unknown field is an error; the error never holds a value.
func expand(name, text string, fields map[string]string) ([]byte, error) {
	t, err := template.New(name).Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, fmt.Errorf("template: %w", err)
	}
	out := &limited{}
	if err := t.Execute(out, fields); err != nil {
		return nil, fmt.Errorf("template: %w", err)
	}
	return out.Bytes(), nil
}

// limited is a buffer that refuses to grow without bound.
type limited struct{ bytes.Buffer }

func (l *limited) Write(b []byte) (int, error) {
	if l.Len()+len(b) > maxRendered {
		return 0, errTooLong
	}
	return l.Buffer.Write(b)
}

func writeCertificate(root *os.Root, c *agent.Certificate) error {
	key, err := c.KeyPEM()
	if err != nil {
		return err
	}
	defer key.Wipe()
	if err := write(root, keyFile, key.Expose()); err != nil {
		return err
	}
	if err := write(root, certFile, c.ChainPEM()); err != nil {
		return err
	}
	return write(root, caFile, c.BundlePEM())
}

// write makes a new file below the root, which nothing leads out of.
func write(root *os.Root, name string, content []byte) error {
	if dir := filepath.Dir(name); dir != "." {
		if err := root.MkdirAll(dir, folderMode); err != nil {
			return err
		}
	}
	file, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	return errors.Join(err, file.Close())
}
