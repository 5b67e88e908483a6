package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestAdviceNamesCommands: every command that the table of advice names exists, and has the
// flags that are given with it.
func TestAdviceNamesCommands(t *testing.T) {
	table, err := os.ReadFile("../../internal/advice/advice.go")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`matter ops [^;:,)\n]*`).FindAllString(string(table), -1)
	if len(named) < 40 {
		t.Fatalf("only %d commands were found", len(named))
	}
	for _, line := range named {
		var words, flags []string
		for _, w := range strings.Fields(strings.TrimPrefix(line, "matter ")) {
			if flag, ok := strings.CutPrefix(w, "--"); ok {
				flags = append(flags, strings.Trim(flag, "\"`"))
			} else {
				words = append(words, strings.Trim(w, "\"`"))
			}
		}
		cmd, _, err := newRootCommand().Find(words)
		if err != nil || cmd.HasSubCommands() {
			t.Errorf("%s: there is no such command: %v", line, err)
			continue
		}
		for _, flag := range flags {
			if cmd.Flags().Lookup(flag) == nil && cmd.InheritedFlags().Lookup(flag) == nil {
				t.Errorf("%s: it has no flag --%s", line, flag)
			}
		}
	}
}
