#!/usr/bin/env bash
# Makes sure that what the tests need from the system is there: a C compiler for the race detector,
# PostgreSQL, MariaDB, openssl, jq, and gRPC for the system's Python. As root, with apt-get, it installs what is
# missing; else it prints the command to run.
set -euo pipefail

packages=()

have_postgres() {
  if [[ -n ${POSTGRES_BIN:-} ]]; then
    [[ -x $POSTGRES_BIN/initdb ]] || { echo "POSTGRES_BIN=$POSTGRES_BIN has no initdb" >&2; exit 1; }
    return 0
  fi
  compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null
}

have_mariadb() {
  if [[ -n ${MARIADB_BIN:-} ]]; then
    [[ -x $MARIADB_BIN/mariadbd ]] || { echo "MARIADB_BIN=$MARIADB_BIN has no mariadbd" >&2; exit 1; }
    return 0
  fi
  [[ -x /usr/sbin/mariadbd ]] || command -v mariadbd >/dev/null
}

command -v "${CC:-cc}" >/dev/null || packages+=(gcc libc6-dev)
command -v openssl >/dev/null || packages+=(openssl)
command -v jq >/dev/null || packages+=(jq)
command -v psql >/dev/null || packages+=(postgresql-client)
have_postgres || packages+=(postgresql)
command -v mariadb >/dev/null || packages+=(mariadb-client-core)
have_mariadb || packages+=(mariadb-server-core)
/usr/bin/python3 -c 'import grpc, google.protobuf' 2>/dev/null ||
  packages+=(python3 python3-grpcio python3-protobuf)

if ((${#packages[@]} == 0)); then exit 0; fi

if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
  echo "The tests need what is not installed here. On Debian and Ubuntu:" >&2
  echo "  sudo apt-get install ${packages[*]}" >&2
  exit 1
fi

echo "installing ${packages[*]} ..." >&2
export DEBIAN_FRONTEND=noninteractive
install=(apt-get install -y -q --no-install-recommends "${packages[@]}")
# The package lists of a fresh machine are empty or old: fetch them only when it must be.
"${install[@]}" >/dev/null 2>&1 || { apt-get update -q >/dev/null && "${install[@]}" >/dev/null; }
