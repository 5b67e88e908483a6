package audit

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
)

// A control table that is restored to a time before a generation began does not know that
// generation, and neither does the chain that continues from there. A record of type
// [EventRepaired] names the last record of each forgotten generation, as matter ops doctor
// found it in the bucket.

// EventRepaired is the type of a record that states a repair of the control table.
const EventRepaired = "control_repaired"

// BodyForgotten is the name in the body of such a record that holds the hashes of the last
// records of the forgotten generations, separated by commas.
const BodyForgotten = "forgotten"

// noteForgotten keeps what a record of the chain states about forgotten generations.
func (v *verifier) noteForgotten(r Record) {
	if r.Type != EventRepaired || r.Body[BodyForgotten] == "" {
		return
	}
	for hash := range strings.SplitSeq(r.Body[BodyForgotten], ",") {
		v.forgottenTips[hash] = r.Seq
	}
}

// explainUnknown explains the generations that are not on the chain's path. known returns
// how many objects of a generation, from its first on, the chain states to be forgotten,
// and by which record. Every other object is a [StrayObject].
func (v *verifier) explainUnknown(ctx context.Context, of string, l objectSet, known func(numbers []int64, objects []Object) (n int, by int64)) error {
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
			v.addFinding(StrayObject, l.unknown[id][seq].Key, "no record of the chain begins its generation")
		}
	}
	return nil
}

// countForgottenRecords counts the records that link to one another up to the last one
// that the chain names as forgotten.
func (v *verifier) countForgottenRecords(numbers []int64, objects []Object) (n int, by int64) {
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
		if seq, named := v.forgottenTips[head.Hash]; named {
			n, by = i+1, seq
		}
	}
	for _, h := range heads[:n] {
		v.forgotten[h] = true
	}
	return n, by
}

// countForgottenAnchors counts the anchors that were signed for this chain, provided that
// the chain states that anything was forgotten.
func (v *verifier) countForgottenAnchors(numbers []int64, objects []Object) (n int, by int64) {
	if len(v.forgottenTips) > 0 { // else nothing was ever forgotten
		by = slices.Max(slices.Collect(maps.Values(v.forgottenTips)))
		for n < len(numbers) && v.isForgottenAnchor(numbers[n], objects[n]) {
			n++
		}
	}
	return n, by
}
