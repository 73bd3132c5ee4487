package sqlite

import (
	"encoding/json"
	"slices"
	"strings"
)

// listing puts together the query for a page of tasks or leases, newest first. With a task or an agent it reads one
// range of an index for what is open and one for what is final, so that it never sorts a history.
type listing struct {
	table  string
	final  []string // the states that are final
	states []string // the states asked for; none means all
	limit  int

	key   string // the column of the index to use, or empty
	keyed any
	conds []string
	args  []any
}

// by chooses the index. The last call wins; the one before becomes a condition.
func (l *listing) by(column string, value any) {
	if l.key != "" {
		l.where(l.key+" = ?", l.keyed)
	}
	l.key, l.keyed = column, value
}

func (l *listing) where(cond string, args ...any) {
	l.conds, l.args = append(l.conds, cond), append(l.args, args...)
}

// query returns the SQL and its arguments.
func (l *listing) query() (query string, args []any) {
	if len(l.states) > 0 {
		states, _ := json.Marshal(l.states) //nolint:errchkjson // strings always encode
		l.where("state IN (SELECT value FROM json_each(?))", string(states))
	}
	isFinal := func(s string) bool { return slices.Contains(l.final, s) }
	open := len(l.states) == 0 || !slices.ContainsFunc(l.states, isFinal)
	open = open || slices.ContainsFunc(l.states, func(s string) bool { return !isFinal(s) })
	final := len(l.states) == 0 || slices.ContainsFunc(l.states, isFinal)
	switch {
	case l.key == "" && !final:
		return l.arm("due IS NOT NULL")
	case l.key == "":
		return l.arm("1 = 1")
	case !final:
		return l.arm(l.key+" = ? AND open = 1", l.keyed)
	case !open:
		return l.arm(l.key+" = ? AND open = 0", l.keyed)
	}
	a, aArgs := l.arm(l.key+" = ? AND open = 1", l.keyed)
	b, bArgs := l.arm(l.key+" = ? AND open = 0", l.keyed)
	query = "SELECT * FROM (" + a + ") UNION ALL SELECT * FROM (" + b + ") ORDER BY 1 DESC LIMIT ?"
	return query, append(append(aArgs, bArgs...), l.limit)
}

// arm returns the query for one range.
func (l *listing) arm(first string, arg ...any) (query string, args []any) {
	conds := append([]string{first}, l.conds...)
	query = "SELECT id, body FROM " + l.table + " WHERE " + strings.Join(conds, " AND ") + " ORDER BY id DESC LIMIT ?"
	return query, append(append(append([]any{}, arg...), l.args...), l.limit)
}
