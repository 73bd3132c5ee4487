// Package stintv1 is the API of Stint as Go types and gRPC stubs, generated from the .proto files beside it; each says what
// its messages mean. `make generate` makes it anew.
package stintv1
