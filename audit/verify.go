package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxFindings bounds the findings in a report; further ones are only counted.
const maxFindings = 200

// Policy is what a verifier requires of a chain.
type Policy struct {
	Chain       string
	Trust       Trust
	Retention   time.Duration // least Object Lock of an object, from its own time on; 0: any
	MaxTail     time.Duration // how long a record may wait for its anchor
	Head        *Head         // the control table's head, read before the bucket; nil: not compared
	Generations Generations   // with Head: those of records, as the control table has them
	Known       []Known       // anchors seen before, against a rollback
	Start       *Start        // with Head: where to begin; nil: at the first record
	Now         time.Time
	Replay      func(Entry) // is called with each record that can be read, in order; nil: with none
}

// Known is an anchor that a verifier remembers from before.
type Known struct {
	N      int64  `json:"n"`
	Digest string `json:"digest"` // of its statement
}

// ParseKnown reads "<n>:<digest>", as [Known.String] prints it.
func ParseKnown(s string) (Known, error) {
	n, hash, _ := strings.Cut(s, ":")
	v, err := strconv.ParseInt(n, 10, 64)
	if err != nil || v < 1 || len(hash) != 64 || strings.Trim(hash, "0123456789abcdef") != "" {
		return Known{}, fmt.Errorf("known anchor %q: want its number, a colon and the 64 hex digits of its digest", s)
	}
	return Known{N: v, Digest: hash}, nil
}

// String is the anchor as [ParseKnown] reads it.
func (k Known) String() string { return fmt.Sprintf("%d:%s", k.N, k.Digest) }

// Report is the outcome of a verification.
type Report struct {
	Result      Result             `json:"result"`
	Chain       string             `json:"chain"`
	Records     int64              `json:"records"` // sequence number of the last one
	HeadHash    string             `json:"head_hash"`
	Anchors     int64              `json:"anchors"`                // anchors that verify
	Anchored    int64              `json:"anchored_seq"`           // last record that one covers
	Start       *Start             `json:"start,omitempty"`        // where the verification began; nil: at the first record
	Last        *Known             `json:"last_anchor,omitempty"`  // the last that verifies
	Log         string             `json:"log,omitempty"`          // its log's origin
	LogIndex    int64              `json:"log_index"`              // its entry there; -1: none
	AnchorAt    time.Time          `json:"anchored_at,omitzero"`   // the signer's claim
	TailAge     time.Duration      `json:"tail_age_ns"`            // of the oldest record not anchored
	Generations []GenerationReport `json:"generations,omitempty"`  // the chain continued past objects in its way
	Lost        []Lost             `json:"lost_records,omitempty"` // never in the bucket, as the chain states
	Findings    []Finding          `json:"findings"`
	More        int                `json:"more_findings,omitempty"`   // beyond those listed
	KeyCopies   int                `json:"data_key_copies,omitempty"` // copies of data keys beside the chain, which it does not vouch for
	Strays      int                `json:"stray_objects,omitempty"`   // how many of all these are StrayObject
	Unchecked   []string           `json:"unchecked,omitempty"`       // what was not looked at

	Next Start `json:"-"` // for [Report.NextStart]
}

// String returns the report as one line.
func (r Report) String() string {
	s := fmt.Sprintf("audit: %d records, ", r.Records)
	if r.Start != nil {
		s += fmt.Sprintf("read from record %d on, ", r.Start.Seq)
	}
	if r.Last != nil {
		s += fmt.Sprintf("%d anchored at log index %d of %s, ", r.Anchored, r.LogIndex, r.Log)
	} else {
		s += "not anchored, "
	}
	if n := len(r.Generations); n > 0 {
		s += fmt.Sprintf("continued %d times past an object in its way, ", n)
	}
	if n := len(r.Lost); n > 0 {
		s += fmt.Sprintf("%d lost before they were in the bucket, ", n)
	}
	switch r.Result {
	case Green:
		return s + "verified"
	case Tampered:
		return s + fmt.Sprintf("TAMPERED: %d findings", len(r.Findings)+r.More)
	default:
		return s + string(r.Result)
	}
}

// Verify checks a whole chain offline: each key has one version and no delete marker, is
// locked long enough and has canonical bytes; no number is missing; records link; anchors
// and their proofs verify; the control table's head and the known anchors are in the
// chain. An error means that the verification could not be made. What it found is in the
// report. With a [Start] it reads the chain from there on; the error [ErrStart] says that it
// must be read whole.
func Verify(ctx context.Context, b Bucket, p Policy) (Report, error) {
	v := &verifier{
		Policy: p, bucket: b, beginnings: map[string][]Begun{},
		forgotten: map[Head]bool{}, forgottenAnchors: map[Known]bool{}, forgottenTips: map[string]int64{},
	}
	v.report = Report{Chain: p.Chain, LogIndex: -1, Findings: []Finding{}}
	if p.Chain == "" || p.Now.IsZero() {
		return v.report, errors.New("verify the audit chain: the policy names no chain or no time")
	}
	if p.Start != nil {
		v.Known = append(slices.Clone(p.Known), p.Start.Anchor)
	}
	inv, err := v.takeInventory(ctx)
	if err != nil {
		return v.report, fmt.Errorf("verify the audit chain: %w", err)
	}
	if err := v.verifyChain(ctx, inv); err != nil {
		return v.report, fmt.Errorf("verify the audit chain: %w", err)
	}
	v.checkHead()
	v.checkTail()
	v.checkKnownAnchors()
	v.reportUnproven()
	v.noteStart()
	v.setResult()
	return v.report, nil
}

// verifyChain verifies records, then anchors, each along their generations. Records come
// first, because they state the generations of the anchors.
func (v *verifier) verifyChain(ctx context.Context, inv inventory) error {
	if v.Start != nil {
		return v.verifyFromStart(ctx, inv)
	}
	path, err := v.findPath(ctx, inv.records)
	if err != nil {
		return err
	}
	records := v.splitObjects(path, inv.records)
	v.generations = formatPath(path)
	if err := v.verifyRecords(ctx, records.objects); err != nil {
		return err
	}
	if err := v.explainUnknown(ctx, OfRecords, records, v.countForgottenRecords); err != nil {
		return err
	}
	if err := v.explainLeftBehind(ctx, OfRecords, records, v.matchForgotten); err != nil {
		return err
	}
	anchors := v.splitObjects(v.beginnings[OfAnchors], inv.anchors)
	v.anchorGenerations = formatPath(anchors.path)
	if err := v.verifyAnchors(ctx, anchors.objects); err != nil {
		return err
	}
	if err := v.explainUnknown(ctx, OfAnchors, anchors, v.countForgottenAnchors); err != nil {
		return err
	}
	if err := v.explainLeftBehind(ctx, OfAnchors, anchors, func() func(int64, Object) bool { return v.isForgottenAnchor }); err != nil {
		return err
	}
	v.checkGenerations(path)
	v.explainLost()
	return nil
}

// formatPath returns the generations of a path as [Generations].
func formatPath(path []Begun) (g Generations) {
	for _, b := range path {
		g = g.With(b.Generation)
	}
	return g
}

// recordAt and anchorAt return the keys of the chain's own objects.
func (v *verifier) recordAt(seq int64) string { return recordKey(v.Chain, v.generations.Of(seq), seq) }

func (v *verifier) anchorAt(n int64) string {
	return anchorKey(v.Chain, v.anchorGenerations.Of(n), n)
}

// verifier is the state of one verification.
type verifier struct {
	Policy
	bucket     Bucket
	report     Report
	links      []recordLink       // the records that can be read, in order
	beginnings map[string][]Begun // of generations, as the records state them: of records and of anchors

	generations, anchorGenerations Generations
	forgotten                      map[Head]bool  // records that the control table has forgotten
	forgottenAnchors               map[Known]bool // and anchors

	forgottenTips map[string]int64 // hashes of the last records of forgotten generations, and the record that names each

	gaps      Gaps
	gapsFound []missedRecords
	covered   []int64   // last records of the anchors that are valid
	startTime time.Time // of the anchor that the verification began at

	digests  map[int64]string    // of the statements of anchors that can be read
	logs     map[string]*logSeen // by origin
	tampered bool                // a finding shows tampering
	noLocks  bool

	recordTime, anchorTime moment          // the latest, see times.go
	keysUsed, logsUsed     usedValidity    // by anchors
	shown                  shownCheckpoint // by the last anchor, see consistency.go
	mustProve              bool            // anchors from here on hold a consistency proof
	unproven               []unprovenRun   // consistency that was not checked
}

// addFinding adds a finding, or counts it if the report is full.
func (v *verifier) addFinding(k Kind, object, format string, args ...any) {
	v.tampered = v.tampered || k.Tampering()
	if k == StrayObject {
		v.report.Strays++
	}
	if len(v.report.Findings) >= maxFindings {
		v.report.More++
		return
	}
	v.report.Findings = append(v.report.Findings, Finding{k, object, fmt.Sprintf(format, args...)})
}

// checkHead compares the chain with what the control table said before: the chain
// may have grown since, never shrunk or changed.
func (v *verifier) checkHead() {
	h := v.Head
	if h == nil {
		v.report.Unchecked = append(v.report.Unchecked, "the head in the control table: it was not given")
		return
	}
	key := v.recordAt(h.Seq)
	l, ok := v.findLink(h.Seq)
	switch {
	case h.Seq == 0 && *h != Genesis(v.Chain):
		v.addFinding(WrongHead, key, "the head of an empty chain is %s, not that of %q", h.Hash, v.Chain)
	case h.Seq > v.report.Records:
		v.addFinding(WrongHead, key, "the control table's head is record %d, the bucket ends at record %d", h.Seq, v.report.Records)
	case ok && l.hash != h.Hash:
		v.addFinding(WrongHead, key, "record %d has hash %s, the control table says %s", h.Seq, l.hash, h.Hash)
	}
}

// checkTail checks the records that no anchor covers yet, and how long they have waited.
func (v *verifier) checkTail() {
	covered := v.report.Anchored
	key := v.recordAt(covered + 1)
	if v.report.Records == 0 {
		v.addFinding(NoRecords, key, "the bucket holds no record of chain %q", v.Chain)
		return
	}
	if oldest := v.findOldestWaiting(); !oldest.IsZero() {
		v.report.TailAge = max(0, v.Now.Sub(oldest))
	}
	switch {
	case covered == 0:
		v.addFinding(NotAnchored, key, "no valid anchor covers any of %d records", v.report.Records)
	case v.report.TailAge > v.MaxTail:
		v.addFinding(TailTooOld, key, "%d records are not anchored, the oldest for %s, more than %s",
			v.report.Records-covered, v.report.TailAge.Round(time.Second), v.MaxTail)
	}
}

// checkKnownAnchors requires the anchors that the verifier remembers. Without a remembered
// anchor, a chain that was cut back to an earlier anchor looks complete.
func (v *verifier) checkKnownAnchors() {
	if len(v.Known) == 0 {
		v.report.Unchecked = append(v.report.Unchecked, "a rollback: no anchor known from before was given")
	}
	for _, k := range v.Known {
		switch got, ok := v.digests[k.N]; {
		case v.forgottenAnchors[k]:
		case !ok:
			v.addFinding(Rollback, v.anchorAt(k.N), "anchor %d was seen before and is not there", k.N)
		case got != k.Digest:
			v.addFinding(Rollback, v.anchorAt(k.N), "anchor %d was seen before with digest %s, now it has %s", k.N, k.Digest, got)
		}
	}
}

// setResult sets the verdict: one sign of tampering outweighs everything else.
func (v *verifier) setResult() {
	switch {
	case v.tampered:
		v.report.Result = Tampered
	case len(v.report.Findings) > 0:
		v.report.Result = Unproven
	default:
		v.report.Result = Green
	}
	if d, ok := v.bucket.(*Dir); ok {
		if d.hasManifest() {
			v.report.Unchecked = append(v.report.Unchecked, "versions and locks are the copy's claim: who made the copy wrote its "+ManifestName)
		}
		for _, name := range d.ignored {
			v.report.Unchecked = append(v.report.Unchecked, "the file "+Visible(name)+": desktops write such files, and the chain has none")
		}
	}
	if n := v.report.KeyCopies; n > 0 {
		v.report.Unchecked = append(v.report.Unchecked, fmt.Sprintf("what the %d copies of data keys say, and how long they are locked: they are beside the chain", n))
	}
	if v.noLocks {
		v.report.Unchecked = append(v.report.Unchecked, "Object Lock: the copy does not record it")
	}
}
