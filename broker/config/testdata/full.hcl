data_dir          = "/srv/stint"
task_trust_domain = "tasks.example.org"
resources         = "/etc/stint/resources.d"

listen {
  grpc       = "127.0.0.1:1"
  http       = "127.0.0.1:2"
  admin      = "unix:///run/other.sock"
  reflection = true
}

identity {
  cert_file     = "/svid.pem"
  key_file      = "/svid.key"
  bundle_file   = "/bundle.pem"
  spiffe_id     = "spiffe://example.org/stint"
  trust_domains = ["example.org"]
}

admins "spiffe://example.org/ops/*" { role = "operator" }

ledger "sqlite" { stop_issuing_below = "2GiB" }

audit {
  origin      = "o"
  key_file    = "/etc/k"
  file        = ""
  checkpoints = ""
}

limits {
  connection_max_age     = "1m"
  connection_grace       = "2s"
  handshake_timeout      = "3s"
  max_concurrent_streams = 5
  max_message            = "128KiB"
}

teardown { stuck_after = "1h" }

reconcile { every = "0s" }

log {
  level  = "debug"
  format = "console"
}

backend "vault" "prod" { address = "https://vault.example.org:8200" }

backend "stepca" "internal" { mode = "embedded" }
