package peercred

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

const (
	// MaxPath is the longest path of a unix socket, in bytes (sun_path of unix(7), less its terminating zero).
	MaxPath = 107

	socketMode fs.FileMode = 0o660
)

// Listen listens on a unix socket of mode 0660 at an absolute path. The socket is never reachable with a wider mode:
// it is made in a private directory and moved into place. A socket that nobody listens on any more is replaced;
// a live one, and any other file, is an error. Closing the listener removes the socket.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("socket path %q must be absolute", path)
	}
	if err := checkFree(ctx, path); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".")
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	defer func() { _ = os.RemoveAll(dir) }()

	made := filepath.Join(dir, "s")
	if longest := max(len(path), len(made)); longest > MaxPath {
		return nil, fmt.Errorf("socket path %s is too long by %d bytes (unix sockets take %d)", path, longest-MaxPath, MaxPath)
	}
	inner, err := listenUnix(ctx, made)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := place(made, path); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", path, err), inner.Close())
	}
	return &listener{UnixListener: inner, path: path}, nil
}

func listenUnix(ctx context.Context, path string) (*net.UnixListener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	inner, ok := l.(*net.UnixListener)
	if !ok {
		return nil, errors.Join(fmt.Errorf("got a %T", l), l.Close())
	}
	inner.SetUnlinkOnClose(false)
	return inner, nil
}

// place gives the socket its mode and its name.
func place(made, path string) error {
	if err := os.Chmod(made, socketMode); err != nil {
		return err
	}
	return os.Rename(made, path)
}

// checkFree returns nil if nothing is at path but perhaps a dead socket.
func checkFree(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen on %s: %w", path, err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s exists and is not a socket", path)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil // left over: nobody listens
	}
	if err != nil {
		return fmt.Errorf("listen on %s: %w", path, err)
	}
	return errors.Join(fmt.Errorf("another process listens on %s", path), conn.Close())
}

// listener removes its socket when closed, but only once and only under its final name.
type listener struct {
	*net.UnixListener

	path string
	once sync.Once
}

// Close stops listening and removes the socket.
func (l *listener) Close() error {
	err := l.UnixListener.Close()
	l.once.Do(func() { err = errors.Join(err, os.Remove(l.path)) })
	return err
}

// Addr returns the address that clients dial.
func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }
