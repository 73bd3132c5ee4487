# For `stintd check --vault-token-file` only. Serving does not have these rights.
path "sys/policies/acl" { capabilities = ["list"] }
path "database/roles/stint-orders-ro" { capabilities = ["read"] }
path "sys/mounts/auth/token/tune" { capabilities = ["read"] }
path "sys/mounts/database" { capabilities = ["read"] }
path "sys/mounts/database/tune" { capabilities = ["read"] }
path "sys/policies/acl/stint" { capabilities = ["read"] }
path "sys/policies/acl/stint-orders-db-read" { capabilities = ["read"] }
