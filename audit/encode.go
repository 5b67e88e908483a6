package audit

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
)

// encode is canonical for a record, without reflection. FuzzEncode holds it to
// encoding/json.
func (r Record) encode() ([]byte, error) { return r.appendTo(make([]byte, 0, 512)) }

func (r Record) appendTo(b []byte) ([]byte, error) {
	e := encoder{b: b}
	e.raw(`{"actor":`).text(r.Actor).raw(`,"body":`).texts(r.Body).raw(`,"chain":`).text(r.Chain).raw(`,"id":`).text(r.ID)
	e.raw(`,"prev":`).text(r.Prev).raw(`,"rotation":`).text(r.Rotation).raw(`,"seq":`).number(r.Seq).raw(`,"step":`).text(r.Step)
	e.raw(`,"time":`).text(r.Time).raw(`,"type":`).text(r.Type).raw(`,"v":`).number(int64(r.V)).raw(`}`)
	return e.b, e.err
}

type encoder struct {
	b   []byte
	err error
}

func (e *encoder) raw(s string) *encoder {
	e.b = append(e.b, s...)
	return e
}

func (e *encoder) number(n int64) *encoder {
	e.b = strconv.AppendInt(e.b, n, 10)
	return e
}

// text leaves to encoding/json whatever might need an escape.
func (e *encoder) text(s string) *encoder {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			b, err := canonical(s)
			if e.b = append(e.b, b...); err != nil {
				e.err = err
			}
			return e
		}
	}
	e.b = append(append(append(e.b, '"'), s...), '"')
	return e
}

func (e *encoder) texts(m map[string]string) *encoder {
	if m == nil {
		return e.raw("null")
	}
	var few [16]string
	keys := few[:0]
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	between := "{"
	for _, k := range keys {
		e.raw(between).text(k).raw(":").text(m[k])
		between = ","
	}
	if len(m) == 0 {
		e.raw("{")
	}
	return e.raw("}")
}

// plain reads an encoded record without escapes, which is what records mostly are;
// false if it is anything else. It looks at little, and need not be trusted: what it
// has read is the record of which b is the encoding, because that is compared.
func plain(b []byte) (Record, bool) {
	s := scanner{rest: string(b), ok: true}
	var r Record
	r.Actor = s.raw(`{"actor":`).text()
	r.Body = s.raw(`,"body":`).texts()
	r.Chain = s.raw(`,"chain":`).text()
	r.ID = s.raw(`,"id":`).text()
	r.Prev = s.raw(`,"prev":`).text()
	r.Rotation = s.raw(`,"rotation":`).text()
	r.Seq = s.raw(`,"seq":`).number()
	r.Step = s.raw(`,"step":`).text()
	r.Time = s.raw(`,"time":`).text()
	r.Type = s.raw(`,"type":`).text()
	r.V = int(s.raw(`,"v":`).number())
	if s.raw(`}`); !s.ok {
		return Record{}, false
	}
	again, err := r.appendTo(make([]byte, 0, len(b)))
	return r, err == nil && bytes.Equal(again, b)
}

type scanner struct {
	rest string
	ok   bool
}

func (s *scanner) raw(prefix string) *scanner {
	var ok bool
	s.rest, ok = strings.CutPrefix(s.rest, prefix)
	s.ok = s.ok && ok
	return s
}

func (s *scanner) until(end string) (found string) {
	i := max(strings.Index(s.rest, end), 0)
	found, s.rest = s.rest[:i], s.rest[i:]
	return found
}

func (s *scanner) text() string {
	found := s.raw(`"`).until(`"`)
	s.raw(`"`)
	return found
}

func (s *scanner) texts() map[string]string {
	m := map[string]string{}
	s.raw("{")
	for s.ok && !strings.HasPrefix(s.rest, "}") {
		if len(m) > 0 {
			s.raw(",")
		}
		k := s.text()
		m[k] = s.raw(":").text()
	}
	s.raw("}")
	return m
}

func (s *scanner) number() int64 {
	digits := s.rest[:len(s.rest)-len(strings.TrimLeft(s.rest, "-0123456789"))]
	n, err := strconv.ParseInt(digits, 10, 64)
	s.rest, s.ok = s.rest[len(digits):], s.ok && err == nil
	return n
}
