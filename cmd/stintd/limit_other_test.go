//go:build !linux

package main

import "errors"

const noLimit = 1<<64 - 1

// limitFiles is only there on Linux.
func limitFiles(int, uint64) error { return errors.ErrUnsupported }
