# For `stintd check` only, beside the policy of stint's own token.
path "database/roles/stint-orders-ro" { capabilities = ["read"] }
path "sys/mounts/database" { capabilities = ["read"] }
path "sys/policies/acl/stint-orders-db-read" { capabilities = ["read"] }
