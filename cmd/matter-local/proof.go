package main

import (
	"fmt"
	"io"
)

// proof is a list of claims, each with what was seen.
type proof struct{ claims []claim }

type claim struct {
	about, text, seen string
	holds             bool
}

func (p *proof) claim(about, text string, holds bool, seen string) {
	p.claims = append(p.claims, claim{about, text, seen, holds})
}

// print shows every claim and reports whether all of them hold. No claim at all
// proves nothing.
func (p *proof) print(w io.Writer) bool {
	all := len(p.claims) > 0
	about := ""
	fmt.Fprintln(w, "\nproof")
	for _, c := range p.claims {
		if c.about != about {
			about = c.about
			fmt.Fprintf(w, "  %s\n", about)
		}
		mark := "ok  "
		if !c.holds {
			mark, all = "FALSE", false
		}
		fmt.Fprintf(w, "    %-5s %s\n          %s\n", mark, c.text, c.seen)
	}
	return all
}
