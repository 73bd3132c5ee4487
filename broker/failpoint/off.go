//go:build !failpoints

package failpoint

// Hit does nothing in a normal build and is inlined away.
func Hit(string) {}
