package audit

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
)

// canonicalBytes returns the canonical encoding of a record. It does not use reflection,
// which takes most of the time of a verification. FuzzEncode compares it with
// encoding/json.
func (r Record) canonicalBytes() ([]byte, error) { return r.appendTo(make([]byte, 0, 512)) }

// appendTo appends the canonical encoding to b.
func (r Record) appendTo(b []byte) ([]byte, error) {
	e := encoder{b: b}
	e.writeRaw(`{"actor":`).writeText(r.Actor).writeRaw(`,"body":`).writeMap(r.Body).writeRaw(`,"chain":`).writeText(r.Chain).writeRaw(`,"id":`).writeText(r.ID)
	e.writeRaw(`,"prev":`).writeText(r.Prev).writeRaw(`,"rotation":`).writeText(r.Rotation).writeRaw(`,"seq":`).writeNumber(r.Seq).writeRaw(`,"step":`).writeText(r.Step)
	e.writeRaw(`,"time":`).writeText(r.Time).writeRaw(`,"type":`).writeText(r.Type).writeRaw(`,"v":`).writeNumber(int64(r.V)).writeRaw(`}`)
	return e.b, e.err
}

// encoder appends JSON and keeps the last error.
type encoder struct {
	b   []byte
	err error
}

func (e *encoder) writeRaw(s string) *encoder {
	e.b = append(e.b, s...)
	return e
}

func (e *encoder) writeNumber(n int64) *encoder {
	e.b = strconv.AppendInt(e.b, n, 10)
	return e
}

// writeText appends a string. A string that may need an escape goes to encoding/json.
func (e *encoder) writeText(s string) *encoder {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			b, err := encodeCanonical(s)
			if e.b = append(e.b, b...); err != nil {
				e.err = err
			}
			return e
		}
	}
	e.b = append(append(append(e.b, '"'), s...), '"')
	return e
}

// writeMap appends an object with sorted names. The array avoids an allocation for the
// common number of names.
func (e *encoder) writeMap(m map[string]string) *encoder {
	if m == nil {
		return e.writeRaw("null")
	}
	var few [16]string
	keys := few[:0]
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	between := "{"
	for _, k := range keys {
		e.writeRaw(between).writeText(k).writeRaw(":").writeText(m[k])
		between = ","
	}
	if len(m) == 0 {
		e.writeRaw("{")
	}
	return e.writeRaw("}")
}

// parsePlain decodes a canonical record without escapes, as most records are; it returns
// false for anything else. The scanner checks little. That is safe, because the result is
// encoded again and compared with b.
func parsePlain(b []byte) (Record, bool) {
	s := scanner{rest: string(b), ok: true}
	var r Record
	r.Actor = s.skipPrefix(`{"actor":`).readText()
	r.Body = s.skipPrefix(`,"body":`).readMap()
	r.Chain = s.skipPrefix(`,"chain":`).readText()
	r.ID = s.skipPrefix(`,"id":`).readText()
	r.Prev = s.skipPrefix(`,"prev":`).readText()
	r.Rotation = s.skipPrefix(`,"rotation":`).readText()
	r.Seq = s.skipPrefix(`,"seq":`).readNumber()
	r.Step = s.skipPrefix(`,"step":`).readText()
	r.Time = s.skipPrefix(`,"time":`).readText()
	r.Type = s.skipPrefix(`,"type":`).readText()
	r.V = int(s.skipPrefix(`,"v":`).readNumber())
	if s.skipPrefix(`}`); !s.ok {
		return Record{}, false
	}
	again, err := r.appendTo(make([]byte, 0, len(b)))
	return r, err == nil && bytes.Equal(again, b)
}

// scanner reads JSON in the exact form that encoder writes without escapes. ok turns false
// at the first difference.
type scanner struct {
	rest string
	ok   bool
}

// skipPrefix removes a prefix that must be there.
func (s *scanner) skipPrefix(prefix string) *scanner {
	var ok bool
	s.rest, ok = strings.CutPrefix(s.rest, prefix)
	s.ok = s.ok && ok
	return s
}

// readUntil returns the text before end; "" if end is not found.
func (s *scanner) readUntil(end string) (found string) {
	i := max(strings.Index(s.rest, end), 0)
	found, s.rest = s.rest[:i], s.rest[i:]
	return found
}

func (s *scanner) readText() string {
	found := s.skipPrefix(`"`).readUntil(`"`)
	s.skipPrefix(`"`)
	return found
}

func (s *scanner) readMap() map[string]string {
	m := map[string]string{}
	s.skipPrefix("{")
	for s.ok && !strings.HasPrefix(s.rest, "}") {
		if len(m) > 0 {
			s.skipPrefix(",")
		}
		k := s.readText()
		m[k] = s.skipPrefix(":").readText()
	}
	s.skipPrefix("}")
	return m
}

func (s *scanner) readNumber() int64 {
	digits := s.rest[:len(s.rest)-len(strings.TrimLeft(s.rest, "-0123456789"))]
	n, err := strconv.ParseInt(digits, 10, 64)
	s.rest, s.ok = s.rest[len(digits):], s.ok && err == nil
	return n
}
