# Of the tokens of credentials of role orders-db-read: one call of one path.
path "database/creds/stint-orders-ro" {
  capabilities = ["read"]
}
