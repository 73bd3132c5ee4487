package stepca

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// DefaultArc is the private arc that is used unless the configuration names another: a number in IANA's private
// enterprise arc that nobody was assigned. An organisation with a number of its own should configure an arc below it.
// A UUID arc (2.25) is refused, because Go then refuses the whole certificate.
//
// Below an arc: 1 is the extension of a certificate (TaskInfo); 2 of a CRL entry, its certificate's NotAfter; 3 of a
// CRL, the time at which older entries were lost.
const DefaultArc = "1.3.6.1.4.1.99999.1"

// enterprises is where private arcs begin (RFC 1155, IANA's private enterprise numbers).
const enterprises = "1.3.6.1.4.1."

// infoVersion is the version that is written.
const infoVersion = 1

var (
	// ErrNoTaskInfo says that a certificate has no task extension below the arc.
	ErrNoTaskInfo = errors.New("certificate has no task extension")
	// ErrBadTaskInfo says that a task extension cannot be read.
	ErrBadTaskInfo = errors.New("task extension is damaged")
	errBadArc      = errors.New("extension arc must be below 1.3.6.1.4.1, for example " + DefaultArc)
)

// TaskInfo is what a certificate's extension says. In ASN.1, with whatever later versions append:
//
//	TaskInfo ::= SEQUENCE { version INTEGER (1), taskID UTF8String, manifestHash OCTET STRING (SIZE (32)), role UTF8String, ... }
type TaskInfo struct {
	// Version is 1; a higher one has more at its end, which Parse ignores.
	Version int
	// TaskID is the task's UUID.
	TaskID string
	// ManifestHash is the SHA-256 of the task's manifest.
	ManifestHash [32]byte
	// Role is the name of the role that it was issued by.
	Role string
}

// taskInfo is TaskInfo as encoding/asn1 wants it.
type taskInfo struct {
	Version      int
	TaskID       string `asn1:"utf8"`
	ManifestHash []byte
	Role         string `asn1:"utf8"`
}

// Marshal returns the DER of the extension's value.
func (i TaskInfo) Marshal() ([]byte, error) {
	der, err := asn1.Marshal(taskInfo{infoVersion, i.TaskID, i.ManifestHash[:], i.Role})
	if err != nil {
		return nil, fmt.Errorf("encode task extension: %w", err)
	}
	return der, nil
}

// ParseTaskInfo reads the DER of the extension's value. Errors wrap ErrBadTaskInfo.
func ParseTaskInfo(der []byte) (TaskInfo, error) {
	var raw taskInfo
	rest, err := asn1.Unmarshal(der, &raw)
	if err != nil {
		return TaskInfo{}, fmt.Errorf("%w: %w", ErrBadTaskInfo, err)
	}
	info := TaskInfo{Version: raw.Version, TaskID: raw.TaskID, Role: raw.Role}
	if len(rest) > 0 || raw.Version < 1 || copy(info.ManifestHash[:], raw.ManifestHash) != len(raw.ManifestHash) ||
		len(raw.ManifestHash) != len(info.ManifestHash) || checkTaskID(raw.TaskID) != nil {
		return TaskInfo{}, ErrBadTaskInfo
	}
	return info, nil
}

// TaskInfoOf reads a certificate's extension below the arc, "" meaning DefaultArc. Errors wrap ErrNoTaskInfo or ErrBadTaskInfo.
func TaskInfoOf(cert *x509.Certificate, arc string) (TaskInfo, error) {
	ids, err := parseArc(arc)
	if err != nil {
		return TaskInfo{}, err
	}
	for _, ext := range cert.Extensions {
		if ext.Id.Equal(ids.task) {
			return ParseTaskInfo(ext.Value)
		}
	}
	return TaskInfo{}, ErrNoTaskInfo
}

// arcIDs are the object identifiers below an arc.
type arcIDs struct {
	task     asn1.ObjectIdentifier
	notAfter asn1.ObjectIdentifier
	lost     asn1.ObjectIdentifier
}

func parseArc(arc string) (arcIDs, error) {
	if arc == "" {
		arc = DefaultArc
	}
	numbers, ok := strings.CutPrefix(arc, enterprises)
	if !ok {
		return arcIDs{}, fmt.Errorf("%w, not %q", errBadArc, arc)
	}
	base := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1}
	for text := range strings.SplitSeq(numbers, ".") {
		n, err := strconv.ParseUint(text, 10, 31)
		if err != nil || strconv.FormatUint(n, 10) != text {
			return arcIDs{}, fmt.Errorf("%w, not %q", errBadArc, arc)
		}
		base = append(base, int(n))
	}
	below := func(n int) asn1.ObjectIdentifier { return append(slices.Clone(base), n) }
	return arcIDs{task: below(1), notAfter: below(2), lost: below(3)}, nil
}

// extension encodes the certificate's extension.
func (a arcIDs) extension(info TaskInfo) (pkix.Extension, error) {
	der, err := info.Marshal()
	if err != nil {
		return pkix.Extension{}, err
	}
	return pkix.Extension{Id: a.task, Value: der}, nil
}
