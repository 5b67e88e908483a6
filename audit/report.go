package audit

import (
	"bufio"
	"fmt"
	"io"
)

// Print writes the report for a person: findings, what was not checked, the last anchor to
// remember unless the copy was changed, and the verdict as the last line.
func (r Report) Print(w io.Writer) error {
	b := bufio.NewWriter(w)
	for _, f := range r.Findings {
		fmt.Fprintln(b, f)
	}
	if r.More > 0 {
		fmt.Fprintf(b, "and %d more\n", r.More)
	}
	for _, l := range r.Lost {
		fmt.Fprintf(b, "record %d was lost before it was in the bucket, as record %d says; its hash is %s\n", l.Seq, l.By, l.Hash)
	}
	for _, u := range r.Unchecked {
		fmt.Fprintln(b, "not checked:", u)
	}
	if r.Last != nil && r.Result != Tampered { // of a copy that was changed there is nothing to trust later
		fmt.Fprintf(b, "remember: --known-anchor %s\n", r.Last)
	}
	fmt.Fprintln(b, r)
	return b.Flush()
}
