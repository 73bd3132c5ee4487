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

// engineEnd says what ends what an engine made, if Vault never does: what is known of it counts more than what the role says, and
// where neither is, a database is taken at the worst that its own role allows, and everything else as endless.
func engineEnd(mountType string, stated recipe.EngineEnd) recipe.EngineEnd {
	switch {
	case slices.Contains(endless(), mountType):
		return recipe.NoEnd
	case stated != "":
		return stated
	case slices.Contains(own(), mountType):
		return recipe.WithLease
	case mountType == "database", mountType == "": // Vault tells since 1.16
		return recipe.AtMaximum
	}
	return recipe.NoEnd
}

// worst returns until when, at worst, what the answer brought could work: its lease ends at notAfter.
func (a *answer) worst(notAfter time.Time) time.Time {
	if slices.Contains(own(), a.reply.MountType) {
		return notAfter
	}
	switch engineEnd(a.reply.MountType, a.recipe.EngineEnd) {
	case recipe.NoEnd:
		return plugins.NoEnd()
	case recipe.AtMaximum: // it was made with the lease that Vault gave first
		given := a.answered.Add(time.Duration(a.reply.LeaseDuration) * time.Second)
		return latest(given, notAfter).Add(engineSlack)
	case recipe.WithLease:
	}
	return notAfter.Add(engineSlack)
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
