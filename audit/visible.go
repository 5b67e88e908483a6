package audit

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Visible is s as one line that a terminal or a mail shows as it is. What would move the
// cursor, begin another line, reverse the order of letters or not be seen is written as
// Go writes it in a string, such as \x1b and \u202e, and so is what is not UTF-8. Text
// that others may have written, object keys, names and reasons, goes through it where
// people read it.
func Visible(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 || hidden(r) {
			q := strconv.QuoteToASCII(s[i : i+n])
			b.WriteString(q[1 : len(q)-1])
		} else {
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

// hidden reports control characters (Cc), format characters such as those of text
// direction (Cf), and line and paragraph separators (Zl, Zp).
func hidden(r rune) bool {
	return unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp)
}
