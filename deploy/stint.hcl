# The configuration of a broker beside SPIRE and Vault: docs/deployment.md walks through it, docs/configuration.md names
# every key. `stintd check --config stint.hcl` finds what is wrong with yours.
data_dir = "/var/lib/stint"                       # ledger.db, ca/; 0700, locked by one process

listen {
  grpc  = "0.0.0.0:7846"                          # agents and operators: mTLS with SVIDs
  http  = "0.0.0.0:7847"                          # /livez /readyz /metrics /bundle.pem /crl.pem: no secret, no authentication
  admin = "unix:///run/stint/admin.sock"          # 0660 root:stint; works without SPIRE; the peer's uid is audited
  # jwt = "0.0.0.0:7848"                          # server TLS, JWT-SVIDs; off unless set
}

identity {
  workload_api  = "unix:///run/spire/sockets/agent.sock"
  spiffe_id     = "spiffe://example.org/stint"    # which of the SVIDs served there is Stint's own
  trust_domains = ["example.org"]                 # federated ones only if named here
}

admins "spiffe://example.org/ops/*"      { role = "admin" }
admins "spiffe://example.org/ops/oncall" { role = "operator" }
admins "spiffe://example.org/audit/siem" { role = "auditor" }

task_trust_domain = "tasks.example.org"
resources         = "/etc/stint/resources.d"      # applied at start and on SIGHUP; then read-only over the API

ledger "sqlite" { stop_issuing_below = "512MiB" } # free disk at which issuing stops and revoking goes on

audit {
  origin      = "stint.example.org/audit"
  key_file    = "/etc/stint/audit.key"            # signs checkpoints; not beside the ledger
  file        = "/var/log/stint/audit.jsonl"      # a copy for the SIEM, reopened on SIGHUP
  checkpoints = "/var/log/stint/checkpoints.log"  # append-only; ship it off the machine
}

backend "vault" "prod" {
  address    = "https://vault.example.org:8200"
  ca_file    = "/etc/stint/vault-ca.pem"
  token_role = "stint"
  auth "jwt" {                                    # or "approle" { role_id, secret_id = "file://…" }, "token" { file }
    mount    = "jwt-spiffe"
    role     = "stint"
    audience = "https://vault.example.org"
  }
  # database "orders" {                           # lists its users, to see what Vault forgot: docs/reconcile.md
  #   url      = "postgres://stint_inventory@orders.db.example.org/postgres"
  #   password = "file:///etc/stint/inventory.password"
  #   users    = "v-%"
  #   roles    = ["orders-db-read"]
  # }
}

backend "stepca" "internal" {
  mode         = "embedded"                       # or "remote": url, root_file, provisioner, key = "file://…"
  issuer_cert  = "/etc/stint/issuing-ca.pem"      # of your own PKI; left out, a root is made in data_dir/ca
  issuer_roots = "/etc/stint/root-ca.pem"         # the roots above it: what services trust
  issuer_key   = "file:///run/credentials/stintd.service/issuing-ca.key"
  crl_url      = "http://stint.example.org:7847/crl.der"
}
