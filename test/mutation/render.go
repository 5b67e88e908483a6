package mutation

import (
	"bytes"
	"cmp"
	"slices"
)

// edit inserts text into a file, or replaces what lies between at and end. No text
// has a line break, so lines keep their numbers.
type edit struct {
	at, end int // byte offsets
	text    string
	closing bool // it closes what an edit before it opened
	site    int
}

// span is where the text of a site is in a rendered file.
type span struct{ from, to, site int }

// render applies the edits but those of dropped sites. A site is registered before
// those inside of it, so at one offset it opens first and closes last.
func (s *source) render(dropped map[int]bool) ([]byte, []span) {
	order := make([]int, len(s.edits))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int {
		a, b := s.edits[i], s.edits[j]
		switch {
		case a.at != b.at:
			return cmp.Compare(a.at, b.at)
		case a.closing != b.closing:
			if a.closing {
				return -1
			}
			return 1
		case a.closing:
			return cmp.Compare(j, i)
		}
		return cmp.Compare(i, j)
	})
	var out bytes.Buffer
	spans := map[int]*span{}
	at := 0
	for _, i := range order {
		e := s.edits[i]
		if dropped[e.site] {
			continue
		}
		out.Write(s.text[at:e.at])
		if spans[e.site] == nil {
			spans[e.site] = &span{from: out.Len(), site: e.site}
		}
		out.WriteString(e.text)
		spans[e.site].to = out.Len()
		at = e.end
	}
	out.Write(s.text[at:])
	var list []span
	for _, sp := range spans {
		list = append(list, *sp)
	}
	return out.Bytes(), list
}

// innermost is the site of the smallest span around an offset.
func innermost(spans []span, offset int) (site int, ok bool) {
	var best span
	for _, s := range spans {
		if s.from <= offset && offset <= s.to && (!ok || s.to-s.from < best.to-best.from) {
			best, ok = s, true
		}
	}
	return best.site, ok
}
