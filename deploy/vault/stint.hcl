# Of Stint's own token: make one token per credential, end tokens and leases, read them back.
path "auth/token/create/stint" { capabilities = ["update"] }
path "auth/token/revoke-accessor" { capabilities = ["update"] }
path "auth/token/lookup-accessor" { capabilities = ["update"] }
path "auth/token/renew-self" { capabilities = ["update"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/roles/stint" { capabilities = ["read"] }
path "sys/capabilities-self" { capabilities = ["update"] }
path "sys/leases/tidy" { capabilities = ["update"] }
# Only leases of Vault roles whose names begin with stint-.
path "sys/leases/lookup" {
  capabilities = ["update"]
  allowed_parameters = {
    "lease_id" = ["database/creds/stint-*"]
  }
}
path "sys/leases/renew" {
  capabilities = ["update"]
  allowed_parameters = {
    "lease_id" = ["database/creds/stint-*"]
    "increment" = []
  }
}
path "sys/leases/revoke" {
  capabilities = ["update"]
  allowed_parameters = {
    "lease_id" = ["database/creds/stint-*"]
    "sync" = []
  }
}
# What exists under each role, for reconciliation only.
path "sys/leases/lookup/database/creds/stint-orders-ro/" { capabilities = ["list", "sudo"] }
