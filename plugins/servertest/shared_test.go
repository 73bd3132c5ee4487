package servertest_test

import (
	"testing"

	"github.com/stint-dev/stint/plugins/servertest"
)

var servers servertest.Shared

func TestMain(m *testing.M) { servers.Run(m) }
