package stepca

// ProvisionerTemplate is the X.509 template that the JWK provisioner of a remote step-ca must have
// (authority.provisioners[].options.x509.template in ca.json). It takes from the one-time token what the embedded CA
// decides itself; the validity comes from the request, and of the CSR only the key is used. Without it step-ca
// chooses serial numbers itself, and the backend refuses what it issues.
//
// The claim "stint" of a token holds:
//
//	serial      string, the serial number in decimal: the lease ID
//	cn          string, the common name; absent for an empty subject
//	sans        []string, the SPIFFE ID and the DNS names
//	ekus        []string, "clientAuth", "serverAuth"
//	extensions  []{id: dotted OID, critical: bool, value: base64 of the DER}
//	crls        []string, CRL distribution points; may be absent
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
