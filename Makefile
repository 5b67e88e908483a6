# Two commands matter: make demo runs the main job, make test passes the tests. Each
# sets up what it needs first: Go, Python 3 and make are all that a machine must have.

SHELL       := bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS   += --no-builtin-rules -j4

ARCH      ?= arm64
FUNCTIONS := $(notdir $(patsubst %/main.go,%,$(wildcard functions/*/main.go)))
LDFLAGS   := -s -w
TAGS      := lambda.norpc
GOARCH_arm64  := arm64
GOARCH_x86_64 := amd64

export MATTER_ROOT := $(CURDIR)

# What is built is what is tested: one set of flags, so that packages are compiled once.
export GOFLAGS     := -trimpath
export CGO_ENABLED := 0
export SAM_CLI_TELEMETRY := 0
# Memory for time: the compiler and the tests collect garbage less often.
export GOGC ?= 400

.PHONY: help demo test build build-fips install package package-fips release release-parts release-snapshot check-tools venv dynoxide rekor-server asl ministack spec spec-deep fuzz sim sim-deep sim-takeovers mutants mutation chaos aws-acceptance requirements lint fmt clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

demo: build venv dynoxide rekor-server ## adopt rows that boto3 wrote, rotate real rows on a local AWS, twice, and prove what happened
	@bin/matter-local demo

# Packages in which goroutines meet. The others drive processes, in which the race
# detector sees nothing, or do one thing after the other. What belongs to both kinds,
# and is five times slower with it, also runs whole without it: SCHEDULED.
CONCURRENT := rotation/... audit envelope/... kek source source/s3 $(addprefix internal/,budget notify rekor restore) $(addprefix test/,linear load memddb/... memstore/...)
SCHEDULED  := rotation/... test/sim
# Tests of SCHEDULED for which the race detector has nothing more to find: they work with one
# goroutine, or through a million keys or an hour of traffic of what smaller tests race.
UNRACED := ^(TestCalendar|TestYear|TestFirstQuarter|TestDrillUnderFaults|TestFaultSchedulesAreOfTheModel|TestMemoryMillion|TestDeepProofIsShared|TestEstimate|TestEstimateBesideLimits|TestTraffic|TestApprovalUnderFaults|TestEveryFailureOfAnAnchorIsTold)$$

test: build venv dynoxide rekor-server build/tla2tools.jar asl ministack ## all tests, as CI runs them
	@export MATTER_REQUIRE_LOCAL=1 MATTER_SIM_SECONDS=$${MATTER_SIM_SECONDS:-10}
	# go vet is part of the lint, which works while the first packages wait for processes
	make --no-print-directory lint & lint=$$!
	# and so do the models, whose checks are of one processor each
	nice -n 19 go test -vet=off -timeout 40m ./spec & spec=$$!
	go test -vet=off -timeout 40m -parallel 4 ./test/integration ./cmd/matter && first=1 || first=
	# side by side, for neither keeps two processors busy to its end; the longest packages first, in which order they
	# begin; what one goroutine works out is left to the other lane
	( CGO_ENABLED=1 go test -race -vet=off -timeout 40m -skip '$(UNRACED)' $(addprefix ./,$(CONCURRENT))
	  CGO_ENABLED=1 go test -race -vet=off -timeout 40m ./test/sim -run 'TestOneFault|TestTwoFaults|TestRandomSchedules$$|Amid' ) & race=$$!
	go test -vet=off -p 3 -timeout 40m $(addprefix ./,$(SCHEDULED)) $$(go list ./... | grep -vxFf <(go list $(addprefix ./,$(filter-out $(SCHEDULED),$(CONCURRENT))) ./spec ./test/integration ./cmd/matter)) && ok=1 || ok=
	wait $$race || ok=
	wait $$spec || ok=
	wait $$lint || ok=
	test "$$first" -a "$$ok"

build: check-tools ## the CLI at bin/matter and the functions for this machine
	@mkdir -p bin
	go build -o bin/ ./cmd/...
	for f in $(FUNCTIONS); do
	  go build -tags $(TAGS) -ldflags '$(LDFLAGS)' -o build/local/$$f/bootstrap ./functions/$$f
	done

PREFIX ?= /usr/local

install: build ## matter, with its manual pages, and matter-audit-verify, under PREFIX (default /usr/local)
	@install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(PREFIX)/share/man/man1'
	install -m 755 bin/matter bin/matter-audit-verify '$(DESTDIR)$(PREFIX)/bin'
	bin/matter man '$(DESTDIR)$(PREFIX)/share/man/man1'

PACKAGE_DIR ?= build/functions

package: ## the functions as template.yaml deploys them (ARCH=arm64 or x86_64)
	@test -n '$(GOARCH_$(ARCH))' || { echo "ARCH=$(ARCH): use arm64 or x86_64" >&2; exit 2; }
	for f in $(FUNCTIONS); do
	  GOOS=linux GOARCH=$(GOARCH_$(ARCH)) go build -tags $(TAGS) -ldflags '$(LDFLAGS)' -o $(PACKAGE_DIR)/$$f/bootstrap ./functions/$$f
	done

# The frozen cryptographic module that Go lists as certified (lib/fips140/certified.txt). A program built with it is
# in FIPS 140-3 mode from its start.
build-fips package-fips: export GOFIPS140 := v1.0.0
build-fips: build ## what build makes, with Go's FIPS 140-3 module (docs/install.md)
package-fips: package ## what package makes, with Go's FIPS 140-3 module

# The prerequisites are checked before anything is fetched, with what installs them.
check-tools:
	@missing=()
	for t in go:golang python3:python3; do
	  command -v "$${t%%:*}" >/dev/null || missing+=("$${t##*:}")
	done
	python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
	if (( $${#missing[@]} )); then
	  echo "missing: apt-get install -y $${missing[*]}   (Go must be 1.26 or newer)" >&2; exit 2
	fi

venv: .venv/.done ## what comes as Python packages: moto, the SAM translator, cfn-lint, Java
.venv/.done: requirements.txt | check-tools
	@python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

dynoxide: build/dynoxide ## the local AWS's DynamoDB
build/dynoxide: tools/dynoxide/fetch.sh | check-tools
	@$<
	touch $@

rekor-server: build/rekor/rekor-server ## the transparency log's server (rekor-tiles)
build/rekor/rekor-server: tools/rekor/go.mod tools/rekor/go.sum | check-tools
	@mkdir -p build/rekor
	cd tools/rekor && go build -o ../../build/rekor/rekor-server github.com/sigstore/rekor-tiles/v2/cmd/rekor-server/posix

ministack: build/ministack/.done ## a second AWS, to deploy on
build/ministack/.done: tools/ministack/requirements.txt | check-tools
	@python3 -m venv build/ministack
	build/ministack/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

asl: build/asl/.done ## a second interpreter of the state machine, and a validator
build/asl/.done: tools/asl/fetch.sh tools/asl/package.json tools/asl/package-lock.json | venv
	@$<

build/tla2tools.jar: tools/tlc/fetch.sh | venv
	@tools/tlc/fetch.sh

spec: build/tla2tools.jar ## check every model, and recorded runs
	@MATTER_SPEC=all go test ./spec/...

spec-deep: build/tla2tools.jar ## larger models, for MATTER_SPEC_BUDGET (default 30m)
	@MATTER_SPEC_BUDGET=$${MATTER_SPEC_BUDGET:-30m} go test ./spec -run TestVariants -v -timeout 0

sim: ## fault schedules for MATTER_SIM_SECONDS; SEED=… or SCHEDULE='…' tells one as a story, WORLD=adapters, requests or keyed in the real adapters
	@if [[ -n '$(SEED)$(SCHEDULE)' ]]; then
	  MATTER_SIM_WORLD='$(WORLD)' MATTER_SIM_SEED='$(SEED)' MATTER_SIM_SCHEDULE='$(SCHEDULE)' go test ./test/sim -run TestReplay -v -count 1
	else
	  go test ./test/sim -run 'TestOneFault|TestTwoFaults|TestRandomSchedules$$|TestRandomAmid|TestRandomKeyed|TestTakeOvers|TestObjects|TestRestores' -v -count 1 -timeout 0
	fi

sim-deep: ## every single fault in the real adapters, every pair of faults, then seeds, for MATTER_SIM_BUDGET (default 30m)
	@MATTER_SIM_WORLD='$(WORLD)' MATTER_SIM_BUDGET=$${MATTER_SIM_BUDGET:-30m} go test ./test/sim -run 'TestDeep|TestOneFaultAmid|TestOneFaultKeyed' -v -count 1 -timeout 0

sim-takeovers: ## an emergency begun at every call of a rotation, with every single fault at each of its own; SEED=… tests that sample alone
	@MATTER_SIM_SEED='$(SEED)' MATTER_SIM_BUDGET=$(if $(SEED),,$${MATTER_SIM_BUDGET:-30m}) go test ./test/sim -run 'TestTakeOvers' -v -count 1 -timeout 0

mutants: build venv dynoxide rekor-server build/tla2tools.jar ## plant every bug and write the tables of docs/testing.md
	@MATTER_MUTANTS=1 go test ./test/sim -run TestPlantedBugs -v -count 1 -timeout 0 -args -update
	MATTER_MUTANTS=1 go test ./rotation -run TestPlantedBugs -v -count 1 -timeout 0
	MATTER_MUTANTS=1 go test ./envelope -run TestPlantedBugs -v -count 1 -timeout 0
	MATTER_REQUIRE_LOCAL=1 MATTER_MUTANTS=1 go test ./test/integration -run TestPlantedBugs -v -count 1 -timeout 0 -args -update

mutation: venv dynoxide rekor-server ## change every line of the main packages, for MATTER_MUTATION_BUDGET (default 10m), and see their tests fail
	@MATTER_REQUIRE_LOCAL=1 MATTER_MUTATION=1 go test ./test/mutation -run 'TestMutation$$' -v -count 1 -timeout 0 -args $(if $(UPDATE),-update)

chaos: build venv dynoxide rekor-server ## rotations with killed processes, MATTER_CHAOS_RUNS of them (default 50)
	@MATTER_REQUIRE_LOCAL=1 MATTER_CHAOS_RUNS=$${MATTER_CHAOS_RUNS:-50} go test ./test/integration -run 'TestChaos$$' -v -count 1 -timeout 0

fuzz: ## every fuzz target for FUZZ_SECONDS (default 30)
	@grep -rl --include='*_test.go' '^func Fuzz' audit envelope internal rotation | sort | while read -r f; do
	  for t in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' "$$f"); do
	    echo "$$(dirname "$$f") $$t"
	    go test "./$$(dirname "$$f")" -run '^$$' -fuzz "^$$t\$$" -fuzztime "$${FUZZ_SECONDS:-30}s"
	  done
	done

aws-acceptance: build package venv ## the whole life of a deployment in your AWS account; says first what that costs, and asks
	@PATH="$(CURDIR)/.venv/bin:$$PATH" bin/matter-acceptance $(if $(YES),--yes)

# One build at a time: an archive has its programs in the order in which they were finished.
# GoReleaser and what makes the SBOMs: a module of their own, which no test builds.
RELEASE_TOOLS := build/release-tools
$(RELEASE_TOOLS)/goreleaser: tools/release/go.mod tools/release/go.sum
	@mkdir -p $(RELEASE_TOOLS)
	cd tools/release && go build -o ../../$(RELEASE_TOOLS)/ github.com/goreleaser/goreleaser/v2 github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod
	touch $@

# What GoReleaser puts into the archives and does not build itself.
release-parts:
	@rm -rf build/release && mkdir -p build/release/man
	go run ./cmd/matter man build/release/man
	for arch in arm64 x86_64; do
	  make --no-print-directory package ARCH=$$arch PACKAGE_DIR=build/release/$$arch
	done

release-snapshot: $(RELEASE_TOOLS)/goreleaser ## everything that a release consists of, in dist/, but what needs Docker or a signer's identity
	@export PATH="$(CURDIR)/$(RELEASE_TOOLS):$$PATH"
	goreleaser check
	goreleaser release --snapshot --clean --parallelism 1 --skip=docker,sign

release: $(RELEASE_TOOLS)/goreleaser # by .github/workflows/release.yml, at a tag
	@PATH="$(CURDIR)/$(RELEASE_TOOLS):$$PATH" goreleaser release --clean --parallelism 1

requirements: ## resolve requirements.txt, and that of the second AWS, again from their lists
	@resolve() {
	  rm -rf build/resolve && python3 -m venv build/resolve
	  build/resolve/bin/pip install --quiet -r "$$1"
	  { echo "# Resolved from $$1 by make requirements."; build/resolve/bin/pip freeze; } > "$$2"
	}
	resolve tools/python/requirements.in requirements.txt
	resolve tools/ministack/requirements.in tools/ministack/requirements.txt

# What no program calls is dead, but for what tools/deadcode.allow lists; envelope, kek and
# audit are libraries, whose callers are not here, and tests and the generator read flow. What no test calls either is dead anywhere.
DEADCODE := go tool -modfile=tools/go.mod deadcode -tags $(TAGS) -f '{{$$p := .Path}}{{range .Funcs}}{{println $$p .Name}}{{end}}'

lint: ## golangci-lint (with gofumpt and go vet) and deadcode; make test runs it too
	@ok=1
	GOMEMLIMIT=2GiB go tool -modfile=tools/go.mod golangci-lint run ./... || ok=
	$(DEADCODE) -filter '^github.com/matter-ops/kms-rotation/(rotation|source|internal|cmd|functions)/?' ./functions/... ./cmd/... | sed 's,^github.com/matter-ops/kms-rotation/,,; /^$$/d' | LC_ALL=C sort |
	  diff -U0 --label tools/deadcode.allow --label 'found dead' <(grep -v '^#' tools/deadcode.allow) - || ok=
	$(DEADCODE) -test ./... | sed '/^$$/d' | diff -U0 --label 'nothing is dead' --label 'called by no test either' /dev/null - || ok=
	test "$$ok"

fmt: ## format the Go code
	@go tool -modfile=tools/go.mod golangci-lint fmt ./...

clean: ## remove everything that was built or fetched
	@rm -rf bin build dist .venv .local .aws-sam
