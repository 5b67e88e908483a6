package audit

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A chain grows forever, and a rotation should not cost more because others came before it.
// So a verification may begin at an anchor that an earlier verification has reached, and read
// the records and anchors from there on. Where it may begin, a record of the chain states:
//
//	record 3 ← … ← record 812 ← … ← record 820 ← … ← head
//	                   ↑                 states: verified up to anchor 37, record 812
//	               anchor 37
//
// The statement is only where to look. What makes the beginning true is checked each time:
// anchor 37 is read from the bucket with its Object Lock, its signature must verify under a
// pinned key, a trusted log must hold it, and record 812 must have the hash that it names.
// From there every record links to the head, the statement too. Who can append records but
// cannot sign anchors can therefore let a verification begin at a later true anchor, and
// make it read less; it cannot make it accept a record. What no verification from an anchor
// looks at, such as an object that was added among older ones, a whole verification finds.

// Whole is the last verification that read the chain from its first record.
type Whole struct {
	Seq int64     `json:"records"` // record that it read up to
	At  time.Time `json:"at"`
	By  string    `json:"by"` // who ran it
}

// Start is where a verification may begin.
type Start struct {
	Anchor  Known       `json:"anchor"`
	Seq     int64       `json:"seq"`       // record that the anchor covers
	Stated  int64       `json:"stated_by"` // the record that says so; 0: none yet
	Whole   Whole       `json:"whole"`
	Records Generations `json:"generations,omitempty"` // of records, when it was verified
	Anchors Generations `json:"anchor_generations,omitempty"`
}

// The names in the body of a record that states a [Start].
const (
	bodyVerifiedAnchor  = "verified_anchor" // as [Known.String]
	bodyVerifiedSeq     = "verified_seq"
	bodyVerifiedRecords = "verified_generations"        // of records; absent: none
	bodyVerifiedAnchors = "verified_anchor_generations" // of anchors; absent: none
	bodyWholeSeq        = "verified_whole_records"
	bodyWholeAt         = "verified_whole_at"
	bodyWholeBy         = "verified_whole_by"
)

// ErrStart reports that a verification cannot begin where it was told to, and must read the
// whole chain.
var ErrStart = errors.New("the audit chain cannot be verified from that anchor on")

// State adds the start to the body of a record.
func (s Start) State(body map[string]string) {
	body[bodyVerifiedAnchor] = s.Anchor.String()
	body[bodyVerifiedSeq] = strconv.FormatInt(s.Seq, 10)
	body[bodyWholeSeq] = strconv.FormatInt(s.Whole.Seq, 10)
	body[bodyWholeAt] = s.Whole.At.UTC().Format(timeFormat)
	body[bodyWholeBy] = s.Whole.By
	for name, g := range map[string]Generations{bodyVerifiedRecords: s.Records, bodyVerifiedAnchors: s.Anchors} {
		if g != "" {
			body[name] = string(g)
		}
	}
}

// ParseStart decodes what a record states; false if it states nothing, or nothing that can
// be used.
func ParseStart(r Record) (Start, bool) {
	s := Start{Stated: r.Seq, Whole: Whole{By: r.Body[bodyWholeBy]}}
	var errs [6]error
	s.Anchor, errs[0] = ParseKnown(r.Body[bodyVerifiedAnchor])
	s.Seq, errs[1] = strconv.ParseInt(r.Body[bodyVerifiedSeq], 10, 64)
	s.Whole.Seq, errs[2] = strconv.ParseInt(r.Body[bodyWholeSeq], 10, 64)
	s.Whole.At, errs[3] = time.Parse(timeFormat, r.Body[bodyWholeAt])
	s.Records, errs[4] = ParseGenerations(r.Body[bodyVerifiedRecords])
	s.Anchors, errs[5] = ParseGenerations(r.Body[bodyVerifiedAnchors])
	return s, errors.Join(errs[:]...) == nil && s.Seq >= 1 && s.Seq < r.Seq
}

// NextStart returns where the next verification may begin, after this one of now by somebody;
// false unless nothing was found but objects outside the chain.
func (r Report) NextStart(now time.Time, by string) (Start, bool) {
	sound := r.More == 0 && !slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Kind != StrayObject })
	if !sound || r.Next.Seq == 0 {
		return Start{}, false
	}
	s := r.Next
	s.Whole = Whole{Seq: r.Records, At: now, By: by}
	if r.Start != nil {
		s.Whole = r.Start.Whole
	}
	return s, true
}

// PartialBucket is a [Bucket] that can list a part of its keys.
type PartialBucket interface {
	Bucket
	// VersionsAfter lists, as Versions does, the keys that begin with prefix and come after
	// the key after.
	VersionsAfter(ctx context.Context, prefix, after string) ([]ObjectVersion, error)
}

// VerifySince verifies the chain from the last anchor that a record states to be verified, and
// needs the head and the generations of the control table for it. It reads the whole chain,
// as [Verify] does, if no record states one, if the last whole verification is older than
// every, or if the shorter one finds anything.
func VerifySince(ctx context.Context, b Bucket, p Policy, every time.Duration) (Report, error) {
	partial, ok := b.(PartialBucket)
	if !ok || p.Head == nil {
		return Verify(ctx, b, p)
	}
	kept := &keptBucket{PartialBucket: partial, objects: map[ObjectVersion]Object{}}
	start, found, err := kept.findStart(ctx, Line{p.Chain, p.Generations}, p.Head.Seq)
	if err != nil {
		return Report{}, fmt.Errorf("verify the audit chain: %w", err)
	}
	if age := p.Now.Sub(start.Whole.At); found && age >= 0 && age < every { // a time to come would put the whole one off forever
		since := p
		since.Start = &start
		r, err := Verify(ctx, kept, since)
		if err == nil && r.Result == Green || err != nil && !errors.Is(err, ErrStart) {
			return r, err
		}
	}
	return Verify(ctx, kept, p)
}

// findStart looks for the last record that states a [Start], from record to back to the first
// of the last generation; false if it finds nothing.
func (k *keptBucket) findStart(ctx context.Context, at Line, to int64) (Start, bool, error) {
	first := at.Generations.Last().From
	for n := int64(readers); to >= first; n *= 2 {
		s, ok, err := k.findStatement(ctx, at, max(first, to-n+1), to)
		if ok || err != nil {
			return s, ok, err
		}
		to -= n
	}
	return Start{}, false, nil
}

// keptBucket keeps what was read, so that it is read once. It is safe for concurrent use.
type keptBucket struct {
	PartialBucket
	mu      sync.Mutex
	objects map[ObjectVersion]Object
}

// Read implements [Bucket].
func (k *keptBucket) Read(ctx context.Context, v ObjectVersion) (Object, error) {
	k.mu.Lock()
	o, ok := k.objects[v]
	k.mu.Unlock()
	if ok {
		return o, nil
	}
	o, err := k.PartialBucket.Read(ctx, v)
	if err != nil {
		return o, err //nolint:wrapcheck // as its own
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.objects[v] = o
	return o, nil
}

// findStatement reads the records of a range and returns what the last one that states a
// start says.
func (k *keptBucket) findStatement(ctx context.Context, at Line, from, to int64) (Start, bool, error) {
	versions, err := k.VersionsAfter(ctx, path.Dir(at.RecordKey(from))+"/", at.RecordKey(from-1))
	if err != nil {
		return Start{}, false, err
	}
	objects := map[int64]ObjectVersion{}
	for _, v := range versions {
		id, seq, ok := PlaceOf(at.Chain, v.Key)
		if _, twice := objects[seq]; ok && !twice && !v.DeleteMarker && id == at.Generations.Of(seq) && seq >= from && seq <= to {
			objects[seq] = v
		}
	}
	var last Start
	found := false
	err = readObjects(ctx, k, objects, func(seq int64, o Object, err error) error {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		e, err := Parse(o.Bytes)
		if err != nil || e.Record.Seq != seq {
			return nil // the verification names it
		}
		if s, ok := ParseStart(e.Record); ok {
			last = s
			found = true
		}
		return nil
	})
	return last, found, err
}

// listVersions lists what the verification looks at: the whole bucket, or the chain's keys
// from its start on.
func (v *verifier) listVersions(ctx context.Context) ([]ObjectVersion, error) {
	if v.Start == nil {
		return v.bucket.Versions(ctx)
	}
	s := v.Start
	b, ok := v.bucket.(PartialBucket)
	switch {
	case !ok:
		return nil, fmt.Errorf("%w: the bucket cannot be listed in parts", ErrStart)
	case v.Head == nil || v.Generations != s.Records:
		return nil, fmt.Errorf("%w: a generation has begun since", ErrStart)
	case s.Seq < s.Records.Last().From || s.Anchor.N < s.Anchors.Last().From:
		return nil, fmt.Errorf("%w: it is before the last generation", ErrStart)
	}
	v.report.Start = s
	v.generations, v.anchorGenerations = s.Records, s.Anchors
	records, err := b.VersionsAfter(ctx, path.Dir(v.recordAt(s.Seq))+"/", v.recordAt(s.Seq-1))
	if err != nil {
		return nil, err
	}
	anchors, err := b.VersionsAfter(ctx, path.Dir(v.anchorAt(s.Anchor.N))+"/", v.anchorAt(s.Anchor.N-1))
	return append(records, anchors...), err
}

// firstRecord and firstAnchor return the numbers that the verification begins with.
func (v *verifier) firstRecord() int64 {
	if v.Start == nil {
		return 1
	}
	return v.Start.Seq
}

func (v *verifier) firstAnchor() int64 {
	if v.Start == nil {
		return 1
	}
	return v.Start.Anchor.N
}

// verifyFromStart is verifyChain from the start on. What it cannot judge without the records
// before, such as a generation that begins or a repair that names forgotten ones, is
// [ErrStart].
func (v *verifier) verifyFromStart(ctx context.Context, inv inventory) error {
	records := v.splitObjects(beginningsOf(v.Start.Records), inv.records)
	if err := v.verifyRecords(ctx, records.objects); err != nil {
		return err
	}
	if len(v.beginnings) > 0 || len(v.forgottenTips) > 0 {
		return fmt.Errorf("%w: a record since then is of a generation or of a repair", ErrStart)
	}
	anchors := v.splitObjects(beginningsOf(v.Start.Anchors), inv.anchors)
	if err := v.verifyAnchors(ctx, anchors.objects); err != nil {
		return err
	}
	for of, set := range map[string]objectSet{OfRecords: records, OfAnchors: anchors} {
		none := func([]int64, []Object) (int, int64) { return 0, 0 }
		if err := v.explainUnknown(ctx, of, set, none); err != nil {
			return err
		}
	}
	v.explainLost()
	return nil
}

// beginningsOf returns generations as a path of the chain.
func beginningsOf(g Generations) (path []Begun) {
	for _, one := range g.All() {
		path = append(path, Begun{Generation: one})
	}
	return path
}

// noteStart records in the report where the verification began and what it has not read, and
// where the next one may begin.
func (v *verifier) noteStart() {
	v.report.Next.Records, v.report.Next.Anchors = v.generations, v.anchorGenerations
	if s := v.report.Start; s != nil {
		v.report.Unchecked = append(v.report.Unchecked, s.describe(v.startTime))
	}
}

// describe says what a verification from the start on has not read.
func (s Start) describe(signed time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "records before %d and anchors before %d were not read now, and other objects not listed: anchor %d", s.Seq, s.Anchor.N, s.Anchor.N)
	if !signed.IsZero() {
		fmt.Fprintf(&b, ", signed %s,", formatTime(signed))
	}
	fmt.Fprintf(&b, " covers the records, as record %d states; the chain was verified whole up to record %d on %s by %s",
		s.Stated, s.Whole.Seq, formatTime(s.Whole.At), Visible(s.Whole.By))
	return b.String()
}
