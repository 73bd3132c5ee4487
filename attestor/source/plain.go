package source

import (
	"strconv"
	"strings"

	"google.golang.org/grpc/status"
)

// Plain returns what a gRPC error says without gRPC's own words: "connection refused" instead of
// `rpc error: code = Unavailable desc = connection error: desc = "transport: Error while dialing: …"`. Text that it does
// not know stays as it is. It is for people: programs look at the status code.
func Plain(err error) string {
	const description = "desc = "
	text := status.Convert(err).Message()
	for {
		_, inner, found := strings.Cut(text, description)
		if !found {
			break
		}
		text = inner
		if quoted, quoteErr := strconv.QuotedPrefix(inner); quoteErr == nil {
			if text, quoteErr = strconv.Unquote(quoted); quoteErr != nil {
				text = quoted
			}
		}
	}
	for _, words := range []string{"transport: ", "Error while dialing: ", "error while dialing: ", "authentication handshake failed: "} {
		text = strings.TrimPrefix(text, words)
	}
	if strings.HasPrefix(text, "dial ") { // "dial tcp 127.0.0.1:8443: connect: connection refused"
		if _, fault, found := strings.Cut(text, ": "); found {
			text = strings.TrimPrefix(fault, "connect: ")
		}
	}
	return text
}
