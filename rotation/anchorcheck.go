package rotation

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
)

// CheckAnchoring shows that anchoring works, by mathematics and not by "it ran":
// the last anchor verifies now and is young enough, and a canary record goes all
// the way into the log within its deadline. It is preflight's check; its error is
// the reason to refuse.
func (s *Steps) CheckAnchoring(ctx context.Context) (string, error) {
	a := s.Anchoring
	if a == nil {
		return "", notConfigured()
	}
	st, err := a.Store.LoadAnchor(ctx)
	if err != nil {
		return "", unavailable("anchor state", err)
	}
	if age := s.Now().Sub(st.Last.At); st.Last.N > 0 && age > a.Heartbeat+a.MaxTail {
		return "", &Error{
			Kind: Unverified, Field: "anchor", Msg: fmt.Sprintf("the last anchor is %s old, more than %s", age.Round(time.Second), a.Heartbeat+a.MaxTail),
			Next: "find out why the anchor schedule does not run, then matter ops audit anchor",
		}
	}
	within, cancel := context.WithTimeout(ctx, a.Deadline)
	defer cancel()
	out, err := s.Anchor(within, AnchorInput{Canary: true})
	if err != nil {
		return "", err
	}
	if err := s.checkAnchor(ctx, out); err != nil {
		return "", err
	}
	detail := fmt.Sprintf("%d records, anchor %d at log index %d of %s", out.Records, out.Anchor, out.LogIndex, out.Log)
	if aging := a.Trust.Aging(s.Now()); aging != "" {
		detail += "; " + aging
	}
	return detail, nil
}

// checkAnchor verifies one anchor from the bucket.
func (s *Steps) checkAnchor(ctx context.Context, out AnchorOutput) error {
	at, _, err := s.Outbox.Head(ctx)
	if err != nil {
		return unavailable("audit head", err)
	}
	st, err := s.Anchoring.Store.LoadAnchor(ctx)
	if err != nil {
		return unavailable("anchor state", err)
	}
	_, err = s.loadAnchor(ctx, st.Places.AnchorKeyIn(at.Chain, out.Anchor), out.Digest)
	return err
}

// AuditOptions are what a person may add to a verification.
type AuditOptions struct {
	Known   []audit.Known  // anchors remembered from outside
	MaxTail *time.Duration // nil: the deployment's
}

// VerifyAudit verifies the whole chain in the bucket: records, links, locks,
// versions, anchors and the head in the control table. What it sees is in the
// report; its error says that it could not look.
func (s *Steps) VerifyAudit(ctx context.Context, o AuditOptions) (audit.Report, error) {
	a := s.Anchoring
	if a == nil {
		return audit.Report{}, notConfigured()
	}
	at, head, err := s.published(ctx)
	if err != nil {
		return audit.Report{}, err
	}
	own, err := a.Signer.PublicKey(ctx)
	if err != nil {
		return audit.Report{}, unavailable("anchor key", err)
	}
	st, err := a.Store.LoadAnchor(ctx)
	if err != nil {
		return audit.Report{}, unavailable("anchor state", err)
	}
	p := audit.Policy{
		Chain: at.Chain, Trust: a.Trust, Retention: a.Retention, MaxTail: a.MaxTail, Head: &head, Generations: at.Generations, Known: o.Known, Now: s.Now(),
	}
	p.Trust.AnchorKeys = append(slices.Clone(p.Trust.AnchorKeys), audit.PinnedKey{Key: own})
	if o.MaxTail != nil {
		p.MaxTail = *o.MaxTail
	}
	if st.Last.N > 0 { // the control table remembers too
		p.Known = append(slices.Clone(p.Known), audit.Known{N: st.Last.N, Digest: st.Last.Digest})
	}
	r, err := audit.Verify(ctx, a.Bucket, p)
	if err != nil {
		return r, unavailable("audit bucket", err)
	}
	return r, nil
}

// VerifyAnchored is what the verify step demands: the chain is green, but for objects that
// are no part of it, and an anchor covers everything that was recorded before it looked.
// Whoever may write into the bucket can leave such an object there, and nobody can take
// it away before its lock ends: it must not keep a rotation from its end. The report
// has it.
func (s *Steps) VerifyAnchored(ctx context.Context) (audit.Report, error) {
	_, head, err := s.Outbox.Head(ctx)
	if err != nil {
		return audit.Report{}, unavailable("audit head", err)
	}
	r, err := s.VerifyAudit(ctx, AuditOptions{})
	if err != nil {
		return r, err
	}
	if err := AuditVerdict(withoutLitter(r)); err != nil {
		return r, err
	}
	if r.Anchored < head.Seq {
		return r, &Error{
			Kind: Unverified, Field: audit.ObjectKey(r.Chain, r.Anchored+1),
			Msg:  fmt.Sprintf("records %d to %d are in no public log yet", r.Anchored+1, head.Seq),
			Next: "matter ops audit anchor, then redrive the execution",
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

// litter names what withoutLitter leaves out; "" for nothing.
func litter(r audit.Report) string {
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
		f := worst(r.Findings)
		return &Error{
			Kind: AuditTampered, Field: f.Object, Msg: fmt.Sprintf("%s: %s (%d findings)", f.Kind, f.Detail, len(r.Findings)+r.More),
			Next: "treat it as an incident: matter ops audit verify",
		}
	case audit.Unproven:
		f := worst(r.Findings)
		return &Error{
			Kind: Unverified, Field: f.Object, Msg: fmt.Sprintf("the audit chain is unproven: %s: %s", f.Kind, f.Detail),
			Next: "matter ops audit anchor, then redrive the execution",
		}
	default:
		return &Error{Kind: Internal, Field: "audit", Msg: fmt.Sprintf("a report without a verdict: %q", r.Result)}
	}
}

// worst is the first finding that shows tampering, else the first of all.
func worst(all []audit.Finding) audit.Finding {
	for _, f := range all {
		if f.Kind.Tampering() {
			return f
		}
	}
	return all[0]
}
