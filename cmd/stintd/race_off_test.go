//go:build !race

package main

// instrumented says whether the tests, and therefore the daemons, are built with the race detector.
const instrumented = false
