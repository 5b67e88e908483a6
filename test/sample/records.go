// Package sample is a real data set sealed as cipher rows: the names of the
// Unicode characters, in two tables of different shapes and a known-cipher corpus
// in S3. The local AWS is seeded with it, and reading every row back to its
// original bytes is how the demo and the tests know that a rotation lost nothing.
package sample

import (
	"encoding/json"
	"fmt"
	"unicode"

	"golang.org/x/text/unicode/runenames"
)

// record is one character, the plaintext of a row.
type record struct {
	Codepoint string `json:"codepoint"` // as U+1F600
	Name      string `json:"name"`
	UTF8      string `json:"utf8"`
}

// block is a range of characters that share a row key's hash part.
type block struct {
	name     string
	from, to rune
}

// blocks lists ranges of the Unicode blocks whose characters have names of their
// own. The first go to the table of characters, the others to that of symbols.
var blocks = []block{
	{"Basic Latin", 0x0020, 0x007E},
	{"Latin-1 Supplement", 0x00A0, 0x00FF},
	{"Latin Extended-A", 0x0100, 0x017F},
	{"Greek and Coptic", 0x0370, 0x03FF},
	{"Cyrillic", 0x0400, 0x04FF},
	{"Hebrew", 0x0590, 0x05FF},
	{"Arabic", 0x0600, 0x06FF},
	{"Devanagari", 0x0900, 0x097F},
	{"Georgian", 0x10A0, 0x10FF},
	{"Arrows", 0x2190, 0x21FF},
	{"Mathematical Operators", 0x2200, 0x22FF},
	{"Box Drawing", 0x2500, 0x257F},
	{"Miscellaneous Symbols", 0x2600, 0x26FF},
	{"Dingbats", 0x2700, 0x27BF},
	{"Braille Patterns", 0x2800, 0x28FF},
	{"Emoticons", 0x1F600, 0x1F64F},
	{"Transport and Map Symbols", 0x1F680, 0x1F6C5},
}

const symbolsFrom = "Arrows" // the first block of the second table

// character is one record with its place.
type character struct {
	block string
	code  rune
	plain []byte // JSON of the record
}

func (c character) id() string { return fmt.Sprintf("U+%04X", c.code) }

// characters returns the records of both tables, every one of them assigned in
// Unicode.
func characters() (letters, symbols []character) {
	second := false
	for _, b := range blocks {
		second = second || b.name == symbolsFrom
		for r := b.from; r <= b.to; r++ {
			name := runenames.Name(r)
			if name == "" || !unicode.IsPrint(r) {
				continue
			}
			c := character{block: b.name, code: r}
			c.plain = mustJSON(record{Codepoint: c.id(), Name: name, UTF8: string(r)})
			if second {
				symbols = append(symbols, c)
			} else {
				letters = append(letters, c)
			}
		}
	}
	return letters, symbols
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings always encode
	}
	return b
}

// pick takes at most n of all, spread evenly.
func pick(all []character, n int) []character {
	if n <= 0 || n >= len(all) {
		return all
	}
	out := make([]character, n)
	for i := range out {
		out[i] = all[i*len(all)/n]
	}
	return out
}
