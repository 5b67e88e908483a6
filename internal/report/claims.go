package report

import (
	"fmt"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

// The frameworks. What they ask is paraphrased; their own texts govern.
const (
	soc2 = "SOC 2"
	pci  = "PCI DSS v4.0.1"
	nist = "NIST SP 800-57 Part 1 Rev. 5"
)

// Longest periods of a symmetric key-wrapping key, Table 1 of SP 800-57 Part 1: two
// years to wrap, and three more to unwrap.
const (
	year      = 365 * 24 * time.Hour
	maxWrap   = 2 * year
	maxUnwrap = maxWrap + 3*year
)

// claims maps the rotation to what frameworks ask for, each with the evidence. A
// claim can only be as good as the chain that its evidence is in.
func (c *collection) claims() {
	c.report.Claims = []Claim{
		c.rated(c.protectsKeys()), c.rated(c.encryptsData()),
		c.rated(c.strongKeys()), c.rated(c.keyChange()), c.rated(c.retirement()), c.rated(c.substitution()),
		notCovered(),
		c.rated(c.cryptoperiods()), c.rated(c.keyStates()),
	}
}

// rated lowers a claim to what the audit chain carries.
func (c *collection) rated(k Claim) Claim {
	v := c.report.Audit.Verification
	if k.Status == NotShown || v.Result == audit.Green {
		return k
	}
	switch v.Result {
	case audit.Tampered:
		k.Status = NotShown
		k.Text += " But the audit chain does not verify, so its records prove nothing."
	case audit.Unproven:
		k.Status = Partly
		k.Text += " The audit chain is whole, but not proven by a public log."
	default:
		k.Status = Partly
		k.Text += " The audit chain could not be verified for this report."
	}
	return k
}

// evidence collects what there is: records by their types, and keys.
func (c *collection) evidence(events ...string) []Evidence {
	var out []Evidence
	for _, event := range events {
		for _, rec := range c.report.Audit.Records {
			if rec.Type != event {
				continue
			}
			out = append(out, Evidence{
				What:  fmt.Sprintf("audit record %d, %s, %s", rec.Seq, rec.Type, rec.Time.Format(time.RFC3339)),
				Where: rec.Object,
			})
		}
	}
	return out
}

func (c *collection) keyEvidence() []Evidence {
	var out []Evidence
	for _, k := range c.report.KEKs {
		out = append(out, Evidence{
			What:  fmt.Sprintf("%s KEK: registry %s, KMS %s", k.Role, k.State, k.KMSState),
			Where: k.ARN,
		})
	}
	return out
}

func (c *collection) done() bool { return c.report.Rotation.Phase == kek.Completed }

func (c *collection) protectsKeys() Claim {
	k := Claim{
		Framework: soc2, Ref: "CC6.1", Status: Shown,
		Asks:     "Cryptographic keys are protected during generation, storage, use and destruction.",
		Text:     "The KEKs are KMS keys, which never leave KMS. The new one was made, tested and put in use, and the old one retired and disabled, each step recorded.",
		Evidence: append(c.evidence(kek.EventKEKMinted, kek.EventDualUnwrapPassed, kek.EventPointerSwitched, kek.EventOldKEKRetired, kek.EventRolledBack, kek.EventReminted), c.keyEvidence()...),
	}
	if !c.done() {
		k.Status, k.Text = Partly, "The KEKs are KMS keys, which never leave KMS. This rotation did not complete: it shows how the keys were handled as far as it came."
	}
	return k
}

func (c *collection) encryptsData() Claim {
	k := Claim{
		Framework: soc2, Ref: "CC6.1", Status: NotShown,
		Asks:     "Data at rest is encrypted, under keys that are in use.",
		Text:     "No scan of this rotation has read every row under the new KEK.",
		Evidence: c.evidence(kek.EventRowsCounted, kek.EventRowsRehearsed, kek.EventRowsRewrapped, kek.EventOldKEKRetired, kek.EventRotationCompleted),
	}
	if t, ok := c.report.total(passVerify); ok && c.done() && t.Quarantined == 0 {
		k.Status = Shown
		k.Text = fmt.Sprintf("The last scan read %d rows in %d sources, and each names the new KEK.", t.Scanned, len(c.report.Rows))
		if rec, ok := c.report.record(kek.EventRotationCompleted); ok && rec.Body["unwrapped"] != "" {
			k.Text += " Unwrapped under it: " + rec.Body["unwrapped"] + "."
		}
	}
	return k
}

func (c *collection) strongKeys() Claim {
	k := Claim{
		Framework: pci, Ref: "3.6.1.2, 3.7.1", Status: NotShown,
		Asks:     "Strong keys are generated, and kept in a secure cryptographic device or under a key-encryption key at least as strong.",
		Text:     "This rotation made no key.",
		Evidence: append(c.evidence(kek.EventKEKMinted), c.keyEvidence()...),
	}
	if _, ok := c.report.record(kek.EventKEKMinted); ok {
		k.Status = Partly
		k.Text = "KMS generated the new KEK as SYMMETRIC_DEFAULT (256-bit AES-GCM) for ENCRYPT_DECRYPT. That KMS keeps it in a validated HSM is AWS's evidence (AWS Artifact), not this report's."
	}
	return k
}

func (c *collection) keyChange() Claim {
	p := c.report.Cryptoperiod
	k := Claim{
		Framework: pci, Ref: "3.7.4", Status: NotShown,
		Asks:     "Keys are changed at the end of their defined cryptoperiod.",
		Text:     "The old KEK was not changed: the pointer did not move.",
		Evidence: c.evidence(kek.EventRotationStarted, kek.EventPointerSwitched, kek.EventOldKEKSealed, kek.EventRowsRewrapped),
	}
	if !p.WrapTo.IsZero() {
		k.Status = Partly
		k.Text = fmt.Sprintf("The pointer moved off the old KEK on %s after %s. Rows may still be under it.", day(p.WrapTo), human(p.WrapTo.Sub(p.WrapFrom)))
	}
	if c.done() {
		k.Status = Shown
		k.Text = fmt.Sprintf("The old KEK was changed on %s after %s in use, and every row of the registered sources was moved off it. The cryptoperiod that is to be kept is the entity's own.", day(p.WrapTo), human(p.WrapTo.Sub(p.WrapFrom)))
	}
	return k
}

func (c *collection) retirement() Claim {
	r := c.report.Rotation
	k := Claim{
		Framework: pci, Ref: "3.7.5", Status: NotShown,
		Asks:     "Keys are retired or replaced when their cryptoperiod ends or when they may be compromised, and retired keys encrypt nothing.",
		Text:     "The old KEK is not retired.",
		Evidence: append(c.evidence(kek.EventRotationStarted, kek.EventOldKEKSealed, kek.EventOldKEKRetired, kek.EventRotationCompleted), c.keyEvidence()...),
	}
	old, ok := c.report.old()
	if ok && old.State == kek.Retired && r.Phase.Reached(kek.KEKRetired) {
		k.Status = Partly
		k.Text = "The old KEK is retired in the registry; verification has not shown yet that KMS refuses it."
		if c.done() && old.KMSState != unknown && !old.Enabled {
			k.Status = Shown
			k.Text = fmt.Sprintf("Sealed, then retired on %s and disabled in KMS, which refused to unwrap with it. It is not deleted, and must not be before %s.", day(old.RetiredAt), day(old.NotBeforeDelete))
		}
	}
	if r.Mode == kek.Emergency {
		k.Text += " This was an emergency: “" + r.Reason + "”."
	}
	return k
}

func (c *collection) substitution() Claim {
	k := Claim{
		Framework: pci, Ref: "3.7.7", Status: NotShown,
		Asks:     "Unauthorized substitution of keys is prevented.",
		Text:     "The pointer did not move in this rotation.",
		Evidence: c.evidence(kek.EventKEKMinted, kek.EventPointerSwitched),
	}
	if rec, ok := c.report.record(kek.EventPointerSwitched); ok {
		k.Status = Shown
		k.Text = fmt.Sprintf("The pointer moved once, by %s, in a transaction conditional on the KEK it named before and on this rotation's lock, and to the key that dual unwrap had tested.", rec.Actor)
	}
	return k
}

func notCovered() Claim {
	return Claim{
		Framework: pci, Ref: "3.6.1.3, 3.6.1.4, 3.7.2, 3.7.3, 3.7.6, 3.7.8", Status: NotCovered, Evidence: []Evidence{},
		Asks: "Access by fewest custodians, fewest locations, secure distribution and storage, split knowledge, custodians' acknowledgement.",
		Text: "No rotation shows these: see the IAM policies of the stack, the key policies, and the entity's procedures. There are no cleartext key components, which KMS does not hand out.",
	}
}

func (c *collection) cryptoperiods() Claim {
	p := c.report.Cryptoperiod
	wrap, total := time.Duration(p.WrapMillis)*time.Millisecond, time.Duration(p.TotalMillis)*time.Millisecond
	k := Claim{
		Framework: nist, Ref: "5.3, Table 1", Status: Shown,
		Asks:     "A symmetric key-wrapping key wraps for at most 2 years, and unwraps for at most 3 years more.",
		Evidence: append(c.evidence(kek.EventPointerSwitched, kek.EventOldKEKSealed, kek.EventOldKEKRetired), c.keyEvidence()...),
	}
	k.Text = fmt.Sprintf("The old KEK could wrap for %s", human(wrap))
	if p.SealedAt.IsZero() {
		k.Text += " so far, and still can"
	}
	k.Text += fmt.Sprintf(", and could unwrap for %s", human(total))
	if p.UnwrapTo.IsZero() {
		k.Text += " so far"
	}
	k.Text += "."
	switch {
	case wrap > maxWrap || total > maxUnwrap:
		k.Status = NotShown
		k.Text += " That is longer than recommended."
	case p.SealedAt.IsZero() || p.UnwrapTo.IsZero():
		k.Status = Partly
	}
	if p.Genesis {
		k.Status = worse(k.Status, Partly)
		k.Text += " It was in use before it was registered here: its creation date in KMS says for how long (aws kms describe-key)."
	}
	return k
}

func worse(a, b Status) Status {
	if a == NotShown || b == NotShown {
		return NotShown
	}
	if a == Partly || b == Partly {
		return Partly
	}
	return a
}

func (c *collection) keyStates() Claim {
	k := Claim{
		Framework: nist, Ref: "7", Status: Partly,
		Asks:     "Keys go through defined states: pre-activation, active, deactivated, compromised, destroyed.",
		Text:     "pending is pre-activation, active is active, draining and sealed are deactivated for wrapping, retired is deactivated for all use and disabled in KMS; none is destroyed by a rotation. This rotation has not taken its keys through all of them.",
		Evidence: c.evidence(kek.EventKEKMinted, kek.EventPointerSwitched, kek.EventOldKEKSealed, kek.EventOldKEKRetired, kek.EventRolledBack, kek.EventReminted),
	}
	if c.done() {
		k.Status = Shown
		k.Text = "pending is pre-activation, active is active, draining and sealed are deactivated for wrapping, retired is deactivated for all use and disabled in KMS; none is destroyed by a rotation. Each transition of both keys is a record, made in the transaction that made the transition."
	}
	return k
}

// day is a date for a sentence.
func day(t time.Time) string {
	if t.IsZero() {
		return "a date that is not set"
	}
	return t.UTC().Format("2006-01-02")
}

// human is a duration as a person says it.
func human(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%d min %02d s", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %02d min", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	}
}
