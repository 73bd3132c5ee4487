// Package failpoint marks the steps between which a test kills or freezes the process. It is empty unless the build has
// the tag failpoints, so that nothing of it is in a released program.
package failpoint
