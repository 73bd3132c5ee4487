package servertest

// ProvisionerTemplate is the certificate template of the JWK provisioner through which step-ca issues for Stint. Every
// field of the certificate comes from the one-time token, whose claim "stint" holds:
//
//	serial      string, the serial number: "0x" and hex digits, or decimal without leading zeros
//	cn          string, the subject's common name; absent or empty for an empty subject
//	sans        []string, the subject alternative names: SPIFFE IDs and DNS names
//	ekus        []string, the extended key usages: "clientAuth", "serverAuth"
//	extensions  []{id: dotted OID, critical: bool, value: base64 of the DER}; may be absent
//	crls        []string, URLs for the CRL distribution points; may be absent
//
// What the CSR asks for is not used but for its key. step-ca still compares a CSR's own names with the token's standard
// claims: each kind of SAN that the CSR has must equal that kind in the claim "sans", and its common name must be the
// claim "sub" or one of "sans". A token without a complete claim "stint" is refused. step-ca adds the AKI, the SKI and
// its own provisioner extension; the validity comes from the request, within the provisioner's limits.
const ProvisionerTemplate = `{{- $s := .Token.stint -}}
{{- if not (and $s $s.serial $s.sans $s.ekus) }}{{ fail "the token has no complete stint claim" }}{{ end -}}
{
	"serialNumber": {{ toJson $s.serial }},
	"subject": { {{- if $s.cn }}"commonName": {{ toJson $s.cn }}{{ end -}} },
	"sans": [
{{- range $i, $san := $s.sans }}{{ if $i }}, {{ end -}}
		{"type": "{{ if hasPrefix "spiffe://" $san }}uri{{ else }}dns{{ end }}", "value": {{ toJson $san }}}
{{- end }}],
{{- with $s.extensions }}
	"extensions": {{ toJson . }},
{{- end }}
{{- with $s.crls }}
	"crlDistributionPoints": {{ toJson . }},
{{- end }}
	"basicConstraints": {"isCA": false},
	"keyUsage": ["digitalSignature"],
	"extKeyUsage": {{ toJson $s.ekus }}
}`
