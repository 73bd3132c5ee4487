package handover

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/stint-dev/stint/sdk/agent"
)

const (
	savedChain  = "chain.pem"
	savedBundle = "bundle.pem"
)

// Save writes a credential into a folder that stays, made with mode 0700 if missing: a certificate as key.pem, chain.pem
// and bundle.pem, a secret as one file for each field, all 0600. Each file is replaced as a whole, the key first. It
// returns the paths.
func Save(dir string, c *agent.Credential) ([]string, error) {
	if err := os.MkdirAll(dir, folderMode); err != nil {
		return nil, fmt.Errorf("save credential: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("save credential: %w", err)
	}
	defer root.Close()
	s := saver{root: root, dir: dir}
	if c.Certificate == nil {
		for name, value := range c.Fields {
			s.put(name, value.Expose())
		}
		return s.paths, s.err
	}
	key, err := c.Certificate.KeyPEM()
	if err != nil {
		return nil, fmt.Errorf("save credential: %w", err)
	}
	defer key.Wipe()
	s.put(keyFile, key.Expose())
	s.put(savedChain, c.Certificate.ChainPEM())
	s.put(savedBundle, c.Certificate.BundlePEM())
	return s.paths, s.err
}

type saver struct {
	root  *os.Root
	dir   string
	paths []string
	err   error // the first
}

// put writes beside the file and renames, so that nobody sees half of it.
func (s *saver) put(name string, content []byte) {
	if s.err != nil {
		return
	}
	if filepath.Base(name) != name || !filepath.IsLocal(name) {
		s.err = fmt.Errorf("save credential: %q is no file name", name)
		return
	}
	fresh := "." + name + ".new"
	err := s.root.Remove(fresh)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if err == nil {
		err = s.fill(fresh, content)
	}
	if err == nil {
		err = s.root.Rename(fresh, name)
	}
	if err != nil {
		s.err = fmt.Errorf("save credential: %w", err)
		return
	}
	s.paths = append(s.paths, filepath.Join(s.dir, name))
}

func (s *saver) fill(name string, content []byte) error {
	file, err := s.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	return errors.Join(err, file.Sync(), file.Close())
}
