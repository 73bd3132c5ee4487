package servertest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// findBinary returns the absolute path of a server's binary: what the variable env names, or name in .bin of the module
// that the test stands in, or name on PATH.
func findBinary(env, name string) (string, error) {
	if path := os.Getenv(env); path != "" {
		found, err := exec.LookPath(path)
		if err != nil {
			return "", fmt.Errorf("%w: %s names no program: %s (run: make tools)", ErrNotInstalled, env, path)
		}
		return filepath.Abs(found)
	}
	if path, err := moduleBinary(name); err == nil {
		return path, nil
	}
	if path, err := exec.LookPath(name); err == nil {
		return filepath.Abs(path)
	}
	return "", fmt.Errorf("%w: no %s in .bin or on PATH (run: make tools, or set %s)", ErrNotInstalled, name, env)
}

// moduleBinary looks for .bin/name beside the go.mod of the working directory or of a directory above it.
func moduleBinary(name string) (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find working directory: %w", err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return exec.LookPath(filepath.Join(dir, ".bin", name))
		}
		if dir == filepath.Dir(dir) {
			return "", ErrNotInstalled
		}
	}
}

// findPostgres returns the directory that holds initdb and postgres. Debian keeps them off PATH, one directory a
// version; the last one wins.
func findPostgres() (string, error) {
	if dir := os.Getenv("POSTGRES_BIN"); dir != "" {
		if _, err := exec.LookPath(filepath.Join(dir, "initdb")); err != nil {
			return "", fmt.Errorf("%w: POSTGRES_BIN names no directory with initdb: %s", ErrNotInstalled, dir)
		}
		return filepath.Abs(dir)
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", fmt.Errorf("look for initdb: %w", err)
	}
	if len(found) > 0 {
		return filepath.Dir(found[len(found)-1]), nil
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(path), nil
	}
	return "", fmt.Errorf("%w: no initdb (run: apt-get install postgresql, or set POSTGRES_BIN)", ErrNotInstalled)
}

// findMariaDB returns mariadbd and mariadb-install-db. Debian keeps the first in /usr/sbin, off most users' PATH.
func findMariaDB() (server, install string, err error) {
	server, err = findMariaDBServer()
	if err != nil {
		return "", "", err
	}
	dir := filepath.Dir(server)
	for _, other := range []string{".", "../bin", "../scripts"} {
		if path, err := exec.LookPath(filepath.Join(dir, other, "mariadb-install-db")); err == nil {
			return server, path, nil
		}
	}
	return "", "", fmt.Errorf("%w: no mariadb-install-db beside %s", ErrNotInstalled, server)
}

func findMariaDBServer() (string, error) {
	const name = "mariadbd"
	if dir := os.Getenv("MARIADB_BIN"); dir != "" {
		found, err := exec.LookPath(filepath.Join(dir, name))
		if err != nil {
			return "", fmt.Errorf("%w: MARIADB_BIN names no directory with %s: %s", ErrNotInstalled, name, dir)
		}
		return filepath.Abs(found)
	}
	for _, path := range []string{name, "/usr/sbin/" + name} {
		if found, err := exec.LookPath(path); err == nil {
			return filepath.Abs(found)
		}
	}
	return "", fmt.Errorf("%w: no %s (run: apt-get install mariadb-server-core, or set MARIADB_BIN)", ErrNotInstalled, name)
}

// findSPIRE returns spire-server and spire-agent: what lies in the directory SPIRE_BIN, or in .bin of the module, or on PATH.
func findSPIRE() (server, agent string, err error) {
	if server, err = findIn("SPIRE_BIN", "spire-server"); err != nil {
		return "", "", err
	}
	agent, err = findIn("SPIRE_BIN", "spire-agent")
	return server, agent, err
}

// findIn is findBinary for a variable that names a directory.
func findIn(env, name string) (string, error) {
	dir := os.Getenv(env)
	if dir == "" {
		return findBinary(env, name)
	}
	found, err := exec.LookPath(filepath.Join(dir, name))
	if err != nil {
		return "", fmt.Errorf("%w: %s names no directory with %s: %s (run: make tools)", ErrNotInstalled, env, name, dir)
	}
	return filepath.Abs(found)
}
