package brokertest_test

import (
	"os"
	"strconv"
	"testing"

	"github.com/stint-dev/stint/broker/brokertest"
	stintv1 "github.com/stint-dev/stint/proto/stint/v1"
)

// On real sockets the same house serves agents on a port, and the kernel says who is at the admin socket.
func TestListen(t *testing.T) {
	t.Parallel()
	h := brokertest.Start(t, brokertest.Config{Listen: true})
	agent := h.As(t, "/agent/a")
	agent.Issue(t, agent.Declare(t, "orders-db"), "orders-db")
	if len(h.Memory.Alive()) != 1 || h.Addr == "" || h.AdminSocket == "" {
		t.Errorf("alive %v, at %q and %q", h.Memory.Alive(), h.Addr, h.AdminSocket)
	}
	who, err := h.Local(t).Tasks.WhoAmI(t.Context(), &stintv1.WhoAmIRequest{})
	if err != nil || who.GetId() != "local:uid:"+strconv.Itoa(os.Getuid()) {
		t.Errorf("got %v, %v", who, err)
	}
	if _, err := h.WithToken(t, h.Token(t, "/agent/a")).Tasks.WhoAmI(t.Context(), &stintv1.WhoAmIRequest{}); err != nil {
		t.Error(err)
	}
}
