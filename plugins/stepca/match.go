package stepca

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// matches reports how a certificate that another CA signed differs from what was asked for: serial number, key, names,
// usages, extension, end and trust. The first difference is the error.
func (l *leaf) matches(chain, roots []*x509.Certificate, now time.Time) error {
	cert := chain[0]
	if cert.SerialNumber.Cmp(serial(l.lease)) != 0 {
		return errors.New("its serial number is not the lease ID")
	}
	if !bytes.Equal(cert.RawSubjectPublicKeyInfo, l.csr.RawSubjectPublicKeyInfo) {
		return errors.New("its key is another")
	}
	if cert.NotAfter.After(l.notAfter) || !cert.NotAfter.After(now) {
		return fmt.Errorf("it ends at %s, not at %s", cert.NotAfter.Format(time.RFC3339), l.notAfter.UTC().Format(time.RFC3339))
	}
	if cert.IsCA || !slices.Equal(cert.ExtKeyUsage, l.usages) || len(cert.UnknownExtKeyUsage) > 0 {
		return errors.New("its usages are others")
	}
	if err := l.matchesNames(cert); err != nil {
		return err
	}
	_, err := cert.Verify(x509.VerifyOptions{
		Roots: pool(roots), Intermediates: pool(chain[1:]), CurrentTime: now, KeyUsages: l.usages,
	})
	if err != nil {
		return fmt.Errorf("it does not lead to the root: %w", err)
	}
	return nil
}

func (l *leaf) matchesNames(cert *x509.Certificate) error {
	subject := len(cert.Subject.Names)
	if cert.Subject.CommonName != l.commonName || subject > 1 || (subject == 1) != (l.commonName != "") {
		return errors.New("its subject is another")
	}
	names := slices.Clone(l.dns)
	slices.Sort(names)
	got := slices.Clone(cert.DNSNames)
	slices.Sort(got)
	if len(cert.URIs) != 1 || cert.URIs[0].String() != l.uri.String() || !slices.Equal(slices.Compact(names), slices.Compact(got)) ||
		len(cert.EmailAddresses)+len(cert.IPAddresses) > 0 {
		return errors.New("its alternative names are others")
	}
	for _, ext := range cert.Extensions {
		if ext.Id.Equal(l.task.Id) && bytes.Equal(ext.Value, l.task.Value) && !ext.Critical {
			return nil
		}
	}
	return errors.New("it lacks the task extension")
}
