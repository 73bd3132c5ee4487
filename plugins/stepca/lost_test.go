package stepca

import (
	"math/big"
	"testing"
	"time"
)

// TestAnotherCRL tells a CRL that follows the known one from one out of a cache, and from one of a CA that has lost its
// database.
func TestAnotherCRL(t *testing.T) {
	known := &crl{number: big.NewInt(7), der: []byte("seven"), signed: time.Now()}
	for name, tt := range map[string]struct {
		number        int64
		der           string
		signed        time.Duration // after the known one
		follows, anew bool
	}{
		"the same":               {number: 7, der: "seven", follows: true},
		"the next":               {number: 8, signed: time.Second, follows: true},
		"the next, by its clock": {number: 8, signed: -time.Second, follows: true},
		"counts anew":            {number: 1, signed: time.Second, anew: true},
		"counts anew at once":    {number: 1, anew: true},
		"as many again":          {number: 7, signed: time.Second, anew: true},
		"out of a cache":         {number: 6, signed: -time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			c := &crl{number: big.NewInt(tt.number), der: []byte(tt.der), signed: known.signed.Add(tt.signed)}
			if follows, anew := c.follows(known), c.anew(known); follows != tt.follows || anew != tt.anew {
				t.Errorf("follows %t, anew %t", follows, anew)
			}
		})
	}
	if !known.follows(nil) || known.anew(nil) {
		t.Error("the first one does not follow nothing")
	}
}
