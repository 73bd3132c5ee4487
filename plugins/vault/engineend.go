package vault

import (
	"slices"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/vault/internal/recipe"
)

// engineSlack is what Vault's database engine adds to the end of the users that it makes, and room for rounding.
const engineSlack = 6 * time.Second

// endless are the engines of systems that know no end: what Vault makes there lives until Vault ends it.
func endless() []string { return []string{"aws", "consul", "nomad", "rabbitmq"} }

// own are the engines whose credentials Vault itself accepts, or that carry their end: it is the lease's.
func own() []string { return []string{"pki", "ssh"} }

// engineEnd says what ends what an engine made, if Vault never does. What is known of the engine counts more than what the role
// says; where neither tells, a database is taken at the worst that its own role allows, and everything else as endless. Vault
// names the engine since 1.16.
func (a *answer) engineEnd() recipe.EngineEnd {
	switch {
	case slices.Contains(endless(), a.reply.MountType):
		return recipe.NoEnd
	case a.recipe.EngineEnd != "":
		return a.recipe.EngineEnd
	case a.reply.MountType == "database":
		return recipe.AtMaximum
	}
	return recipe.NoEnd
}

// worst returns until when, at worst, what the answer brought could work, where its lease ends by bound. It is in whole seconds,
// rounded up, as a handle keeps it.
func (a *answer) worst(lease bound) time.Time {
	end := lease.latest.Add(engineSlack)
	var expires int64 // a certificate's own end
	switch {
	case a.recipe.Certificate() && a.reply.Decode("expiration", &expires):
		return time.Unix(expires, 0)
	case slices.Contains(own(), a.reply.MountType):
		end = lease.latest
	case a.engineEnd() == recipe.NoEnd:
		return plugins.NoEnd()
	case a.engineEnd() == recipe.AtMaximum: // it was made with the lease that Vault gave first
		end = later(end, a.given().latest.Add(engineSlack))
	}
	return end.Add(time.Second - 1).Truncate(time.Second)
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
