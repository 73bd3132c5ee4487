package stepca

// ProvisionerTemplate is the X.509 template that the JWK provisioner of a remote step-ca must have
// (authority.provisioners[].options.x509.template in ca.json). It takes from the one-time token what the embedded CA
// decides itself: the serial number (the lease ID), the common name, the usages and the extension. Names come from
// the token's sans, the validity from the request, and the rest of a request to sign is ignored. Without it step-ca
// chooses serial numbers itself, and the backend refuses what it issues.
//
// The claim "stint" of a token is:
//
//	{"serial": "<decimal>", "common_name": "", "usages": ["clientAuth"], "crl_urls": ["http://…"],
//	 "extension": {"id": "1.3.6.1.4.1.99999.1.1", "value": "<base64>"}}
const ProvisionerTemplate = `{
	"serialNumber": {{ toJson .Token.stint.serial }},
	"subject": {{ if .Token.stint.common_name }}{"commonName": {{ toJson .Token.stint.common_name }}}{{ else }}{}{{ end }},
	"sans": {{ toJson .SANs }},
	"keyUsage": ["digitalSignature"],
	"extKeyUsage": {{ toJson .Token.stint.usages }},
	"basicConstraints": {"isCA": false},
	"crlDistributionPoints": {{ toJson .Token.stint.crl_urls }},
	"extensions": [{
		"id": {{ toJson .Token.stint.extension.id }},
		"critical": false,
		"value": {{ toJson .Token.stint.extension.value }}
	}]
}
`
