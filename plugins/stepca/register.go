package stepca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"iter"
	"math/big"
	"strings"
	"time"

	"github.com/stint-dev/stint/plugins"
	"github.com/stint-dev/stint/plugins/internal/database"
)

// maxSerial is the longest serial number in bits (RFC 5280 section 4.1.2.2).
const maxSerial = 160

// listSigned reads the table in which step-ca keeps every certificate, under its serial number, for ever.
const listSigned = "SELECT nvalue FROM x509_certs"

// openDatabase makes the login of step-ca's database, if there is one.
func (c RemoteConfig) openDatabase() (*database.Login, error) {
	if c.Database == nil {
		return nil, nil //nolint:nilnil // there may be none
	}
	if faults := c.Database.Validate(); len(faults) > 0 {
		return nil, fmt.Errorf("database: %w", errors.Join(faults...))
	}
	login, err := c.Database.Open()
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	return &login, nil
}

// inDatabase yields what step-ca has signed by its own account, whoever asked for it, and has not expired.
func (r *remote) inDatabase(ctx context.Context, now time.Time) iter.Seq2[plugins.Found, error] {
	return func(yield func(plugins.Found, error) bool) {
		q := database.Question{Postgres: listSigned, MySQL: listSigned}
		for der, err := range database.Ask(ctx, *r.signed, q, readValue) {
			f := plugins.Found{}
			if err == nil {
				f, err = foundIn(der)
			}
			if err != nil {
				yield(plugins.Found{}, fmt.Errorf("read what step-ca has signed: %w", err))
				return
			}
			if now.Before(f.NotAfter) && !yield(f, nil) {
				return
			}
		}
	}
}

func readValue(row database.Row) ([]byte, error) {
	var der []byte
	err := row(&der)
	return der, err
}

// foundIn is a certificate as the list has it.
func foundIn(der []byte) (plugins.Found, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return plugins.Found{}, fmt.Errorf("%w: a certificate in step-ca's database cannot be read", plugins.ErrMisconfigured)
	}
	serial := plugins.SerialHandle(cert.SerialNumber)
	return plugins.Found{
		Handle: serial, PublicRef: "serial " + string(serial), IssuedAt: cert.NotBefore, NotAfter: cert.NotAfter,
	}, nil
}

// strangerNumber reads the handle of a certificate whose serial number is longer than that of any lease.
func strangerNumber(h plugins.Handle) (*big.Int, bool) {
	number, ok := new(big.Int).SetString(string(h), 16)
	if !ok || strings.ToUpper(string(h)) != string(plugins.SerialHandle(number)) {
		return nil, false
	}
	_, ours := leaseNumbered(number)
	return number, !ours && number.Sign() > 0 && number.BitLen() <= maxSerial
}
