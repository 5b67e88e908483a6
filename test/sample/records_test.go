package sample

import (
	"encoding/json"
	"testing"
)

func TestCharacters(t *testing.T) {
	letters, symbols := characters()
	if n := len(letters) + len(symbols); n < 2000 {
		t.Errorf("%d records, want at least 2000", n)
	}
	seen := map[string]bool{}
	for _, c := range append(letters, symbols...) {
		var r record
		if err := json.Unmarshal(c.plain, &r); err != nil || r.Name == "" || r.Codepoint != c.id() {
			t.Fatalf("record %s: %+v, %v", c.plain, r, err)
		}
		if seen[c.id()] {
			t.Errorf("%s is there twice", c.id())
		}
		seen[c.id()] = true
	}
	if got := len(pick(letters, 100)); got != 100 {
		t.Errorf("picked %d of %d, want 100", got, len(letters))
	}
	t.Log(len(letters), len(symbols))
}
