package layers

import (
	"cmp"
	"flag"
	"fmt"
	"go/scanner"
	"go/token"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "lower the counts of words.txt to what is there")

// words are expressions that readers stumble over, with what to write instead. Prose says
// what is meant in plain technical English.
var words = []struct {
	name, instead string
	pattern       *regexp.Regexp
}{
	{"mend", "fix, repair", regexp.MustCompile(`(?i)\bmend(s|ed|ing)?\b`)},
	{"for good", "permanently, finally", regexp.MustCompile(`(?i)\bfor good\b`)},
	{"for ever", "forever, permanently", regexp.MustCompile(`(?i)\bfor ever\b`)},
	{"anew", "again, under a new …", regexp.MustCompile(`(?i)\banew\b`)},
	{"spoilt", "corrupted", regexp.MustCompile(`(?i)\bspoil(t|s|ed|ing)?\b`)},
	{"whoever", "anyone who, the person who", regexp.MustCompile(`(?i)\bwhoever\b`)},
	{"go on", "continue", regexp.MustCompile(`(?i)\b(go|goes|going|gone|went) on\b`)},
	{"is no", "is not a", regexp.MustCompile(`(?i)(\w*)\W+(?:is|are|was|were) no ([a-z]+)`)},
	{"vault", "audit bucket", regexp.MustCompile(`\bvaults?\b`)},
}

// prose returns what of a file people read: of a Go file the comments and the strings.
func prose(name, text string) string {
	if !strings.HasSuffix(name, ".go") {
		return text
	}
	var s scanner.Scanner
	files := token.NewFileSet()
	s.Init(files.AddFile(name, files.Base(), len(text)), []byte(text), nil, scanner.ScanComments)
	var b strings.Builder
	for {
		_, tok, lit := s.Scan()
		switch tok {
		case token.EOF:
			return b.String()
		case token.COMMENT, token.STRING:
			fmt.Fprintln(&b, strings.ReplaceAll(lit, "\n// ", " "))
		default:
		}
	}
}

// count is how often a text has an expression. "There is no way" and "no longer" are plain.
func count(text string, pattern *regexp.Regexp) int {
	n := 0
	for _, m := range pattern.FindAllStringSubmatch(text, -1) {
		if len(m) == 3 && (strings.EqualFold(m[1], "there") || slices.Contains([]string{"longer", "more", "less", "other"}, m[2])) {
			continue
		}
		n++
	}
	return n
}

// place is a folder and an expression in its prose.
type place struct{ dir, word string }

func places(counts map[place]int) []place {
	return slices.SortedFunc(maps.Keys(counts), func(a, b place) int {
		return cmp.Or(strings.Compare(a.dir, b.dir), strings.Compare(a.word, b.word))
	})
}

// TestWords: no folder has more of these expressions than test/layers/words.txt allows,
// which allows as many as there are: the counts only fall.
func TestWords(t *testing.T) {
	const list = "test/layers/words.txt"
	counts, where := map[place]int{}, map[place][]string{}
	for _, f := range repository(t) {
		ext := path.Ext(f)
		if ext != ".go" && ext != ".md" && ext != ".tla" && ext != ".yaml" && ext != ".tmpl" || f == "test/layers/words_test.go" {
			continue
		}
		text := prose(f, read(t, f))
		for _, w := range words {
			if n := count(text, w.pattern); n > 0 {
				p := place{path.Dir(f), w.name}
				counts[p] += n
				where[p] = append(where[p], fmt.Sprintf("%s (%d)", path.Base(f), n))
			}
		}
	}
	allowed := map[place]int{}
	for line := range strings.Lines(read(t, list)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		var n int
		dir, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		count, word, _ := strings.Cut(rest, " ")
		if _, err := fmt.Sscan(count, &n); err != nil || word == "" {
			t.Fatalf("%s: %q is not a folder, a count and a word", list, line)
		}
		allowed[place{dir, word}] = n
	}
	instead := map[string]string{}
	for _, w := range words {
		instead[w.name] = w.instead
	}
	for _, p := range places(counts) {
		if n := counts[p]; n > allowed[p] {
			t.Errorf("%s has %d times %q, %d allowed; write: %s. It is in %s", p.dir, n, p.word, allowed[p], instead[p.word], strings.Join(where[p], ", "))
		}
	}
	lower := false
	for _, p := range places(allowed) {
		if n := allowed[p]; counts[p] < n {
			lower = true
			if !*update {
				t.Errorf("%s has %d times %q, %d allowed: lower the count in %s (go test ./test/layers -run TestWords -update)", p.dir, counts[p], p.word, n, list)
			}
			allowed[p] = counts[p]
		}
	}
	if *update && lower {
		var b strings.Builder
		b.WriteString("# How often a folder's prose may have an expression that test/layers/words_test.go lists.\n# Counts only fall: go test ./test/layers -run TestWords -update\n")
		for _, p := range places(allowed) {
			if allowed[p] > 0 {
				fmt.Fprintf(&b, "%s %d %s\n", p.dir, allowed[p], p.word)
			}
		}
		if err := os.WriteFile(root+"/"+list, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
