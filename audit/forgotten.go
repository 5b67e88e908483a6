package audit

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
)

// A control table that is set back to a time before a generation began does not know that
// generation, and neither does the chain that goes on from there. A record of type
// [EventRepaired] says of each what its last record was: matter ops doctor has read it.

// EventRepaired is the type of the record of a repair of the control table.
const EventRepaired = "control_repaired"

// BodyForgotten names in such a record the hashes of the last records of what the table had
// forgotten, separated by commas.
const BodyForgotten = "forgotten"

// hearForgotten takes in what a record of the chain says of forgotten generations.
func (v *verifier) hearForgotten(r Record) {
	if r.Type != EventRepaired || r.Body[BodyForgotten] == "" {
		return
	}
	for hash := range strings.SplitSeq(r.Body[BodyForgotten], ",") {
		v.tips[hash] = r.Seq
	}
}

// explainUnknown goes through the generations that are not on the chain's path. known says
// how many of one, from its first on, the chain knows to be forgotten; every other object is
// a stray.
func (v *verifier) explainUnknown(ctx context.Context, of string, l line, known func(numbers []int64, objects []Object) (n int, by int64)) error {
	for _, id := range slices.Sorted(maps.Keys(l.unknown)) {
		numbers := slices.Sorted(maps.Keys(l.unknown[id]))
		var objects []Object
		for _, n := range numbers {
			o, err := v.bucket.Read(ctx, l.unknown[id][n])
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			objects = append(objects, o)
		}
		n, by := known(numbers, objects)
		if n > 0 {
			v.report.Generations = append(v.report.Generations, GenerationReport{Of: of, ID: id, From: numbers[0], Seq: by, Forgotten: int64(n)})
		}
		for _, seq := range numbers[n:] {
			v.find(StrayObject, l.unknown[id][seq].Key, "no record of the chain begins its generation")
		}
	}
	return nil
}

// forgottenGeneration: records that link, the last of which the chain names.
func (v *verifier) forgottenGeneration(numbers []int64, objects []Object) (n int, by int64) {
	var head Head
	var heads []Head
	for i, o := range objects {
		e, err := Parse(o.Bytes)
		if err != nil || e.Record.Seq != numbers[i] {
			break
		}
		if i == 0 {
			head = Head{Seq: e.Record.Seq - 1, Hash: e.Record.Prev}
		}
		if head, err = e.Follow(v.Chain, head); err != nil {
			break
		}
		heads = append(heads, head)
		if seq, named := v.tips[head.Hash]; named {
			n, by = i+1, seq
		}
	}
	for _, h := range heads[:n] {
		v.forgotten[h] = true
	}
	return n, by
}

// anchorsOfGeneration: anchors that are this chain's own.
func (v *verifier) anchorsOfGeneration(numbers []int64, objects []Object) (n int, by int64) {
	if len(v.tips) > 0 { // else nothing was ever forgotten
		by = slices.Max(slices.Collect(maps.Values(v.tips)))
		for n < len(numbers) && v.forgottenAnchor(numbers[n], objects[n]) {
			n++
		}
	}
	return n, by
}
