#!/usr/bin/env bash
# Checks the configuration and the resources of this folder with stintd, as they would be once installed: in a scratch
# folder in place of /etc/stint, with a CA made for the purpose. Usage: deploy/check.sh [STINTD]
set -euo pipefail
cd "$(dirname "$0")"
stintd=$(realpath "${1:-../.bin/stintd}")

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
cp -R resources.d "$root/resources.d"

ca() { # NAME SUBJECT OPTION...: a CA certificate with its key
  local name=$1 subject=$2
  shift 2
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 2 -subj "/CN=$subject" \
    -keyout "$root/$name.key" -out "$root/$name.pem" -addext keyUsage=critical,keyCertSign,cRLSign "$@" 2>/dev/null
}
ca root-ca 'Example Root'
ca issuing-ca 'Example Stint Issuing CA' -CA "$root/root-ca.pem" -CAkey "$root/root-ca.key" \
  -addext basicConstraints=critical,CA:TRUE,pathlen:0
ca vault-ca 'Example Vault CA'
chmod 0600 "$root"/*.key

sed -e "s|/run/credentials/stintd.service/|$root/|" -e "s|\"/etc/stint/|\"$root/|" -e "s|\"/var/lib/stint\"|\"$root/data\"|" \
  stint.hcl > "$root/stint.hcl"
"$stintd" check --offline --config "$root/stint.hcl"
