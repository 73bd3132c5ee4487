package config

import (
	"fmt"
	"strconv"
	"strings"
)

// ByteSize is a number of bytes.
type ByteSize int64

// The binary units (IEC 80000-13).
const (
	KiB ByteSize = 1 << 10
	MiB ByteSize = 1 << 20
	GiB ByteSize = 1 << 30
	TiB ByteSize = 1 << 40
)

// ParseByteSize reads a whole number with one of the units B, KiB, MiB, GiB and TiB, such as "512MiB".
func ParseByteSize(s string) (ByteSize, error) {
	digits := strings.TrimRight(s, "BKMGTi")
	unit, ok := unitOf(s[len(digits):])
	if !ok {
		return 0, fmt.Errorf("size %q: write a whole number with one of B, KiB, MiB, GiB, TiB, as in 512MiB", s)
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil {
		return 0, fmt.Errorf("size %q: %q is not a whole number", s, digits)
	}
	size := ByteSize(n) * unit
	if size/unit != ByteSize(n) {
		return 0, fmt.Errorf("size %q is too large", s)
	}
	return size, nil
}

func unitOf(s string) (ByteSize, bool) {
	switch s {
	case "B":
		return 1, true
	case "KiB":
		return KiB, true
	case "MiB":
		return MiB, true
	case "GiB":
		return GiB, true
	case "TiB":
		return TiB, true
	}
	return 0, false
}

// String returns the size with the largest unit that divides it.
func (s ByteSize) String() string {
	for _, unit := range []struct {
		size ByteSize
		name string
	}{{TiB, "TiB"}, {GiB, "GiB"}, {MiB, "MiB"}, {KiB, "KiB"}} {
		if s != 0 && s%unit.size == 0 {
			return strconv.FormatInt(int64(s/unit.size), 10) + unit.name
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}
