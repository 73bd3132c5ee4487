package sqlite

import (
	"math"
	"time"

	"github.com/stint-dev/stint/broker/lease"
	"github.com/stint-dev/stint/broker/ledger"
	"github.com/stint-dev/stint/broker/task"
)

// never is the due column of a row for which nothing is planned.
const never = int64(math.MaxInt64)

// lanes walks the lanes that have open leases, one index seek each, with the earliest due time of each.
const lanes = `WITH RECURSIVE l(lane) AS (
	SELECT min(lane) FROM leases WHERE due IS NOT NULL
	UNION ALL
	SELECT (SELECT min(lane) FROM leases WHERE due IS NOT NULL AND lane > l.lane) FROM l WHERE l.lane IS NOT NULL
), d(lane, due) AS (
	SELECT lane, (SELECT min(due) FROM leases WHERE due IS NOT NULL AND lane = l.lane) FROM l WHERE lane IS NOT NULL
) `

// nanos returns nanoseconds since 1970. Instants that do not fit count as never.
func nanos(t time.Time) int64 {
	switch year := t.Year(); {
	case year > 2261:
		return never - 1
	case year < 1700:
		return 0
	}
	return t.UnixNano()
}

// DueLanes returns the lanes that have due leases.
func (r *rows) DueLanes(now time.Time) ([]string, error) {
	var out []string
	err := r.s.each(lanes+"SELECT lane FROM d WHERE due <= ? ORDER BY lane", []any{nanos(now)},
		func(scan func(...any) error) error {
			var lane string
			err := scan(&lane)
			out = append(out, lane)
			return err
		})
	return out, err
}

// NextDue returns when the next task or lease is due, or the zero time.
func (r *rows) NextDue() (time.Time, error) {
	var leases, tasks *int64
	if err := r.s.one(lanes+"SELECT min(due) FROM d", nil, &leases); err != nil {
		return time.Time{}, err
	}
	if err := r.s.one("SELECT min(due) FROM tasks WHERE due IS NOT NULL", nil, &tasks); err != nil {
		return time.Time{}, err
	}
	due := never
	for _, d := range []*int64{leases, tasks} {
		if d != nil {
			due = min(due, *d)
		}
	}
	if due == never {
		return time.Time{}, nil
	}
	return time.Unix(0, due), nil
}

// Stats counts what is alive, from the partial indexes alone.
func (r *rows) Stats() (ledger.Stats, error) {
	st := ledger.Stats{TasksByState: map[task.State]int{}, LeasesByState: map[lease.State]int{}}
	err := r.s.each("SELECT state, count(*) FROM tasks WHERE due IS NOT NULL GROUP BY state", nil,
		func(scan func(...any) error) error {
			var s string
			var n int
			err := scan(&s, &n)
			st.TasksByState[task.State(s)] = n
			return err
		})
	if err != nil {
		return st, err
	}
	now, oldest := nanos(time.Now()), never
	err = r.s.each(`SELECT state, count(*), sum(stuck), sum(due <= ?), min(due) FROM leases WHERE due IS NOT NULL GROUP BY state`,
		[]any{now}, func(scan func(...any) error) error {
			var s string
			var n, stuck, overdue int
			var due int64
			err = scan(&s, &n, &stuck, &overdue, &due)
			st.LeasesByState[lease.State(s)] = n
			st.Stuck += stuck
			st.Overdue += overdue
			oldest = min(oldest, due)
			return err
		})
	if oldest <= now {
		st.OldestDue = time.Unix(0, oldest)
	}
	return st, err
}
