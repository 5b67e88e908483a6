package audit

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Visible returns s as one line that a terminal or a mail shows unchanged. Characters that
// move the cursor, begin a line, reverse the direction of text or are invisible, and bytes
// that are not UTF-8, are escaped as in a Go string, such as \x1b and \u202e. Use it
// wherever people read text that others may have written: object keys, names, reasons.
func Visible(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 || isHidden(r) {
			q := strconv.QuoteToASCII(s[i : i+n])
			b.WriteString(q[1 : len(q)-1])
		} else {
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

// isHidden reports control characters (Cc), format characters such as those of text
// direction (Cf), and line and paragraph separators (Zl, Zp).
func isHidden(r rune) bool {
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}
