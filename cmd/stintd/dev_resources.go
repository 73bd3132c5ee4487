package main

// devResources are what a development broker starts with: names that a person can try at once, and one that is denied.
const devResources = `apiVersion: stint.dev/v1
kind: Role
metadata:
  name: web-client
  description: mTLS client certificate for services that trust the development CA
spec:
  backend: stepca/dev
  ttl: {default: 5m, max: 1h}
  certificate:
    usages: [client_auth]
    common_name: "{{ .agent.name }}"
  deliver:
    env: {CERT: "{{ .cert_file }}", KEY: "{{ .key_file }}", CA: "{{ .ca_file }}"}
---
apiVersion: stint.dev/v1
kind: Role
metadata:
  name: web-server
  description: mTLS server certificate for localhost
spec:
  backend: stepca/dev
  ttl: {default: 15m, max: 1h}
  certificate:
    usages: [server_auth]
    common_name: "{{ .agent.name }}"
    dns_names: [localhost]
  deliver:
    env: {CERT: "{{ .cert_file }}", KEY: "{{ .key_file }}", CA: "{{ .ca_file }}"}
---
apiVersion: stint.dev/v1
kind: Role
metadata:
  name: payroll-db
  description: a role that exists and that no development agent may have
spec:
  backend: stepca/dev
  ttl: {default: 5m, max: 5m}
  certificate:
    usages: [client_auth]
`

// devVaultRole is added where a development Vault runs.
const devVaultRole = `---
apiVersion: stint.dev/v1
kind: Role
metadata:
  name: build-host
  description: one-time SSH password for a build host, from Vault's ssh engine
spec:
  backend: vault/dev
  ttl: {default: 1m, max: 1m}
  parameters:
    - {name: ip, description: the host's address, pattern: "10\\.0\\.0\\.[0-9]{1,3}", required: true}
  vault:
    path: ssh/creds/stint-build-host
    policy: stint-build-host
    data: {ip: "{{ .params.ip }}"}
  deliver:
    env: {SSH_OTP: "{{ .key }}", SSH_USER: "{{ .username }}"}
`

// devProfile lists what development agents may ask for; %s is one more role, or nothing.
const devProfile = `---
apiVersion: stint.dev/v1
kind: Profile
metadata:
  name: dev-agent
spec:
  agents: ["spiffe://dev.stint.local/agent/*"]
  owner: you@dev.stint.local
  sponsor: your-lead@dev.stint.local
  purposes: [try-it, demo]
  roles:
    - {name: web-client}
    - {name: web-server}
%s  task: {default_ttl: 20m, max_ttl: 1h, idle_timeout: 5m, max_live: 20, max_live_leases: 100}
  permit: ceiling
`
