// Package plugintest holds the suite that every backend passes, and a backend in memory whose faults a test controls.
//
// Run is the suite; third parties run it on their own plugins. Memory and Preparing are real backends for tests of
// what stands above one: they keep an inventory of what is alive, and can fail, hang, lose an answer or have an
// effect late.
package plugintest
