package anchor

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/rotation/journal"
)

// CheckAnchoring shows that anchoring works, by mathematics and not by "it ran":
// the last anchor verifies now and is young enough, and a canary record goes all
// the way into the log within its deadline. It is preflight's check; its error is
// the reason to refuse.
func (a *Anchor) CheckAnchoring(ctx context.Context) (string, error) {
	if a == nil {
		return "", errNoLog()
	}
	st, err := a.Store.LoadAnchor(ctx)
	if err != nil {
		return "", journal.WrapUnavailable("anchor state", err)
	}
	if age := a.Journal.Now().Sub(st.Last.At); st.Last.N > 0 && age > a.Heartbeat+a.MaxTail {
		return "", &journal.Error{
			Kind: journal.Unverified, Field: "anchor", Msg: fmt.Sprintf("the last anchor is %s old, more than %s", age.Round(time.Second), a.Heartbeat+a.MaxTail),
			Next: journal.Next{Do: journal.ResumeAnchoring},
		}
	}
	within, cancel := context.WithTimeout(ctx, a.Deadline)
	defer cancel()
	out, err := a.AnchorChain(within, Input{Canary: true})
	if err != nil {
		return "", err
	}
	if err := a.checkAnchor(ctx, out); err != nil {
		return "", err
	}
	detail := fmt.Sprintf("%d records, anchor %d at log index %d of %s", out.Records, out.Anchor, out.LogIndex, out.Log)
	if aging := a.Trust.Aging(a.Journal.Now()); aging != "" {
		detail += "; " + aging
	}
	return detail, nil
}

// checkAnchor verifies one anchor from the bucket.
func (a *Anchor) checkAnchor(ctx context.Context, out Output) error {
	at, _, err := a.Journal.Outbox.Head(ctx)
	if err != nil {
		return journal.WrapUnavailable("audit head", err)
	}
	st, err := a.Store.LoadAnchor(ctx)
	if err != nil {
		return journal.WrapUnavailable("anchor state", err)
	}
	_, err = a.loadAnchor(ctx, st.Places.AnchorKeyIn(at.Chain, out.Anchor), out.Digest)
	return err
}

// AuditOptions are what a person may add to a verification.
type AuditOptions struct {
	Known   []audit.Known  // anchors remembered from outside
	MaxTail *time.Duration // nil: the deployment's
	Since   bool           // from the last anchor that a record states to be verified, if that is enough
}

// WholeEvery is how often the verify step reads the chain from its first record. In between
// it reads what was recorded since the verification before.
const WholeEvery = 365 * 24 * time.Hour

// VerifyAudit verifies the whole chain in the bucket, or with Since the part after an anchor:
// records, links, locks, versions, anchors and the head in the control table. What it sees
// is in the report, and what it did not look at; its error says that it could not look.
func (a *Anchor) VerifyAudit(ctx context.Context, o AuditOptions) (audit.Report, error) {
	if a == nil {
		return audit.Report{}, errNoLog()
	}
	at, head, err := a.Journal.PublishHead(ctx)
	if err != nil {
		return audit.Report{}, err
	}
	own, err := a.Signer.PublicKey(ctx)
	if err != nil {
		return audit.Report{}, journal.WrapUnavailable("anchor key", err)
	}
	st, err := a.Store.LoadAnchor(ctx)
	if err != nil {
		return audit.Report{}, journal.WrapUnavailable("anchor state", err)
	}
	p := audit.Policy{
		Chain: at.Chain, Trust: a.Trust, Retention: a.Retention, MaxTail: a.MaxTail, Head: &head, Generations: at.Generations, Known: o.Known, Now: a.Journal.Now(),
	}
	p.Trust.AnchorKeys = append(slices.Clone(p.Trust.AnchorKeys), audit.PinnedKey{Key: own})
	if o.MaxTail != nil {
		p.MaxTail = *o.MaxTail
	}
	if st.Last.N > 0 { // the control table remembers too
		p.Known = append(slices.Clone(p.Known), audit.Known{N: st.Last.N, Digest: st.Last.Digest})
	}
	var r audit.Report
	if o.Since {
		r, err = audit.VerifySince(ctx, a.Bucket, p, WholeEvery)
	} else {
		r, err = audit.Verify(ctx, a.Bucket, p)
	}
	if err != nil {
		return r, journal.WrapUnavailable("audit bucket", err)
	}
	return r, nil
}

// VerifyAnchored is what the verify step demands: the chain is green, but for objects that
// are no part of it, and an anchor covers everything that was recorded before it looked. It
// reads what was recorded since the verification before, and once in [WholeEvery] all of it.
// Whoever may write into the bucket can leave such an object there, and nobody can take
// it away before its lock ends: it must not keep a rotation from its end. The report
// has it.
func (a *Anchor) VerifyAnchored(ctx context.Context) (audit.Report, error) {
	_, head, err := a.Journal.Outbox.Head(ctx)
	if err != nil {
		return audit.Report{}, journal.WrapUnavailable("audit head", err)
	}
	r, err := a.VerifyAudit(ctx, AuditOptions{Since: true})
	if err != nil {
		return r, err
	}
	if err := AuditVerdict(withoutLitter(r)); err != nil {
		return r, err
	}
	if r.Anchored < head.Seq {
		return r, &journal.Error{
			Kind: journal.Unverified, Field: audit.ObjectKey(r.Chain, r.Anchored+1),
			Msg:  fmt.Sprintf("records %d to %d are in no public log yet", r.Anchored+1, head.Seq),
			Next: journal.Next{Do: journal.AnchorAudit},
		}
	}
	return r, nil
}

// withoutLitter is the report as it would be without the objects in the bucket that are
// neither records nor anchors. Every other object was looked at all the same. If findings
// of other kinds are not listed, the report is left as it is.
func withoutLitter(r audit.Report) audit.Report {
	kept := slices.DeleteFunc(slices.Clone(r.Findings), func(f audit.Finding) bool { return f.Kind == audit.StrayObject })
	if r.Result != audit.Tampered || len(r.Findings)+r.More-r.Strays > len(kept) {
		return r
	}
	r.Findings = kept
	r.More = 0
	r.Strays = 0
	switch {
	case len(kept) == 0:
		r.Result = audit.Green
	case !slices.ContainsFunc(kept, func(f audit.Finding) bool { return f.Kind.Tampering() }):
		r.Result = audit.Unproven
	}
	return r
}

// NameLitter names what withoutLitter leaves out; "" for nothing.
func NameLitter(r audit.Report) string {
	i := slices.IndexFunc(r.Findings, func(f audit.Finding) bool { return f.Kind == audit.StrayObject })
	if i < 0 {
		return ""
	}
	return audit.Visible(fmt.Sprintf("%d objects are not of the chain, the first %s", r.Strays, r.Findings[i].Object))
}

// AuditVerdict is nil for a green report, else the error that names the first
// finding.
func AuditVerdict(r audit.Report) error {
	switch r.Result {
	case audit.Green:
		return nil
	case audit.Tampered:
		f := worstFinding(r.Findings)
		return &journal.Error{
			Kind: journal.AuditTampered, Field: f.Object, Msg: fmt.Sprintf("%s: %s (%d findings)", f.Kind, f.Detail, len(r.Findings)+r.More),
			Next: journal.Next{Do: journal.VerifyAudit},
		}
	case audit.Unproven:
		f := worstFinding(r.Findings)
		return &journal.Error{
			Kind: journal.Unverified, Field: f.Object, Msg: fmt.Sprintf("the audit chain is unproven: %s: %s", f.Kind, f.Detail),
			Next: journal.Next{Do: journal.AnchorAudit},
		}
	default:
		return &journal.Error{Kind: journal.Internal, Field: "audit", Msg: fmt.Sprintf("a report without a verdict: %q", r.Result)}
	}
}

// worstFinding is the first finding that shows tampering, else the first of all.
func worstFinding(all []audit.Finding) audit.Finding {
	for _, f := range all {
		if f.Kind.Tampering() {
			return f
		}
	}
	return all[0]
}

// IsUntampered reports whether nothing speaks against the chain, though not all of it may be
// proven. A log that is down, frozen or forked is no reason to keep an emergency open, whose
// rows are moved and whose old keys are dead: its record says what is not proven, and the
// hourly anchor proves it once a log takes it.
func IsUntampered(r audit.Report) bool {
	result := withoutLitter(r).Result
	return result == audit.Green || result == audit.Unproven
}
