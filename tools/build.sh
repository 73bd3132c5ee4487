#!/usr/bin/env bash
# Builds one pinned tool into .bin and says every 15 s that it is still at it.
# usage: tools/build.sh MODULE PACKAGE OUTPUT "what it is, and about how long" [CGO_ENABLED, 0 unless given]
set -euo pipefail
module=$1 package=$2 output=$3 what=$4 cgo=${5:-0}
root=$(cd "$(dirname "$0")/.." && pwd)

mkdir -p "$(dirname "$root/$output")"
printf 'building %s once ...\n' "$what" >&2
CGO_ENABLED=$cgo go build -C "$root/tools/$module" -trimpath -ldflags='-s -w' \
  -o "$root/$output.new" "$package" &
build=$!
trap 'kill "$build" 2>/dev/null || true' INT TERM

SECONDS=0
while kill -0 "$build" 2>/dev/null; do
  sleep 1
  if ((SECONDS % 15 == 0)); then printf '  %s: %d s\n' "$module" "$SECONDS" >&2; fi
done
wait "$build"
mv "$root/$output.new" "$root/$output"
printf 'built %s in %d s\n' "$output" "$SECONDS" >&2
