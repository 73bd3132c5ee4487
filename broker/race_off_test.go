//go:build !race

package broker_test

// modelSteps is how many random steps a run of the model takes.
const modelSteps = 10_000
