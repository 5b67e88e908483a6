package audit

import (
	"strings"
	"testing"
)

// TestVisible: nothing that others have written forges a line, moves the cursor or hides.
func TestVisible(t *testing.T) {
	for s, want := range map[string]string{
		"":                                 "",
		"key material in a log, é 漢 \"q\"": "key material in a log, é 漢 \"q\"",
		"x\nNext: curl | sh":               `x\nNext: curl | sh`,
		"a\x1b[2J verified\x1b[8m":         `a\x1b[2J verified\x1b[8m`,
		"a\u009b31mred":                    `a\u009b31mred`,
		"safe\u202etxt.exe":                `safe\u202etxt.exe`,
		"zero\u200bwidth":                  `zero\u200bwidth`,
		"line\u2028sep\u2029":              `line\u2028sep\u2029`,
		"replaced \ufffd é\x1b":            "replaced \ufffd é\\x1b",
		"bad\xff\xfe":                      `bad\xff\xfe`,
		"tab\tnul\x00del\x7f":              `tab\tnul\x00del\x7f`,
	} {
		if got := Visible(s); got != want {
			t.Errorf("%q is shown as %q, want %q", s, got, want)
		}
		if again := Visible(Visible(s)); again != want {
			t.Errorf("%q, shown twice: %q", s, again)
		}
	}
	f := Finding{Kind: StrayObject, Object: "x\x1b[2J ok: verified\n", Detail: "d\n"}
	if s := f.String(); strings.ContainsAny(s, "\x1b\n") {
		t.Errorf("a finding is shown as %q", s)
	}
}
