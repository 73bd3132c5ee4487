package render

import (
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const none = "-"

// Duration writes a duration as short as can be: "8h", "13m40s", "84 ms"; "-" for nil.
func Duration(d *durationpb.Duration) string {
	if d == nil {
		return none
	}
	return Short(d.AsDuration())
}

// Short is Duration for Go's own type.
func Short(d time.Duration) string {
	if d != 0 && d > -time.Second && d < time.Second {
		return strconv.FormatInt(d.Milliseconds(), 10) + " ms"
	}
	s := d.Round(time.Second).String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, zero) {
			s = s[:len(s)-2]
		}
	}
	return s
}

// Clock writes an instant as "10:28:00Z", with the date where it is not within a day; "-" for nil.
func Clock(t *timestamppb.Timestamp, now time.Time) string {
	if t == nil {
		return none
	}
	at := t.AsTime()
	if at.Sub(now).Abs() < 24*time.Hour {
		return at.Format("15:04:05Z")
	}
	return at.Format(time.RFC3339)
}

// Worst writes until when something could work: "until 10:28:00Z at worst". The broker writes no known end as the year 9999
// (RFC 5280 section 4.1.2.5).
func Worst(t *timestamppb.Timestamp, now time.Time) string {
	if Endless(t) {
		return "without a known end"
	}
	return "until " + Clock(t, now) + " at worst"
}

// Endless reports whether an instant stands for no known end.
func Endless(t *timestamppb.Timestamp) bool { return t != nil && t.AsTime().Year() == 9999 }

// Until writes how long it is until an instant: "13m40s", "over" when it has passed; "-" for nil.
func Until(t *timestamppb.Timestamp, now time.Time) string {
	if t == nil {
		return none
	}
	if left := t.AsTime().Sub(now); left > 0 {
		return Short(left.Round(time.Second))
	}
	return "over"
}

// Word writes an enum value without its prefix: "TASK_STATE_ACTIVE" as "ACTIVE".
func Word(value interface{ String() string }, prefix string) string {
	return strings.TrimPrefix(value.String(), prefix)
}
