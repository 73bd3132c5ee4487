//go:build race

package broker_test

// modelSteps is how many random steps a run of the model takes. The race detector makes each ten times as slow.
const modelSteps = 1500
