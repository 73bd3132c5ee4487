//go:build !race

package acceptance_test

// instrumented says whether the tests, and therefore the programs, are built with the race detector.
const instrumented = false
