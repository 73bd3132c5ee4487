package policy

import (
	"fmt"
	"time"

	"github.com/stint-dev/stint/broker/fault"
)

// shortest is the least that anything lives.
const shortest = time.Second

// limit is somebody's bound.
type limit struct {
	most time.Duration
	by   string // "profile invoice-agent"
}

// clamp returns the duration in whole seconds within the limits; limits of zero do not count. What was asked for by the
// caller and shortened is noted, or refused where the caller wants that.
func (r *refusals) clamp(field string, asked time.Duration, strict strictness, limits ...limit) time.Duration {
	out, by := asked.Truncate(time.Second), ""
	for _, l := range limits {
		if l.most > 0 && l.most < out {
			out, by = l.most, l.by
		}
	}
	if by == "" || strict == silent {
		return out
	}
	if strict == refuse {
		r.add(refusal{
			reason: fault.TTLTooLong, field: field,
			problem: fmt.Sprintf("%s is longer than %s, the most that %s allows", short(asked), short(out), by),
		})
		return out
	}
	r.clamps = append(r.clamps, Clamp{Field: field, Requested: asked, Granted: out, LimitedBy: by})
	return out
}

// strictness says what becomes of a duration that is too long.
type strictness int

const (
	silent strictness = iota // it was a default: shorten it
	tell                     // shorten it, and say so
	refuse                   // refuse
)

// asked reports how strict to be with a duration that the caller gave, and refuses one that is too short; zero is not
// given.
func (r *refusals) asked(field string, d time.Duration, strict bool) (strictness, bool) {
	switch {
	case d == 0:
		return silent, false
	case d < shortest:
		r.argument(field, fmt.Sprintf("must be at least %s", shortest))
		return silent, false
	case strict:
		return refuse, true
	}
	return tell, true
}

// end returns when something that begins now and lasts d ends, as a whole second that is not later.
func end(now time.Time, d time.Duration) time.Time { return now.Add(d).UTC().Truncate(time.Second) }
