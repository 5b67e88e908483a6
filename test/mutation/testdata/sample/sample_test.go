package sample

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestCount(t *testing.T) {
	if n, err := Count([]string{"a", "", "b"}); n != 2 || err != nil {
		t.Error(n, err)
	}
	if n, err := Count([]string{"a", "b", "c"}); n != 3 || err != nil {
		t.Error(n, err)
	}
	if _, err := Count([]string{"a", "b", "c", "d", "e"}); !errors.Is(err, ErrTooMany) { // four would notice one more than the limit
		t.Error(err)
	}
}

func TestNumber(t *testing.T) {
	for _, f := range []func(string) (int, error){Number, Forward} {
		if n, err := f("4"); n != 8 || err != nil {
			t.Error(n, err)
		}
	}
	if _, err := Number("x"); err == nil { // Forward is not asked
		t.Error("no error")
	}
}

func TestSize(t *testing.T) {
	if Size(9) != "S" || Size(10) != "L" {
		t.Error(Size(9), Size(10))
	}
}

func TestQuery(t *testing.T) {
	in := Query("n", 0)
	if in.Name != "n" || in.Wait != time.Second || *in.Condition != condition { // not Consistent
		t.Errorf("%+v", in)
	}
}

func TestWords(t *testing.T) {
	if got := Words(); !slices.Equal(got, []string{"zero", "one", "two"}) {
		t.Error(got)
	}
}

func TestDescribe(t *testing.T) {
	if got := Describe("x"); got != "string x" {
		t.Error(got)
	}
	if got := Describe(1.5); got != "?" {
		t.Error(got)
	}
	Describe(1) // and does not look
}

func TestCounter(t *testing.T) {
	var c Counter
	c.Add(2)
	if c.Add(-3) != 2 || c.Add(-2) != 0 {
		t.Error(c.n)
	}
	c.Wait(2)
	if c.n != 2 {
		t.Error(c.n)
	}
}

func TestTouch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := Touch(path); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(path); string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
	if Touch("/no/such/directory/f") == nil {
		t.Error("no error")
	}
}
