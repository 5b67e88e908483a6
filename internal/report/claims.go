package report

import (
	"fmt"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
)

// The frameworks. Their requirements are paraphrased here; their own texts are binding.
const (
	soc2 = "SOC 2"
	pci  = "PCI DSS v4.0.1"
	nist = "NIST SP 800-57 Part 1 Rev. 5"
)

// The longest periods of a symmetric key-wrapping key (NIST SP 800-57 Part 1, Table 1): at
// most two years to wrap, and three more to unwrap.
const (
	year      = 365 * 24 * time.Hour
	maxWrap   = 2 * year
	maxUnwrap = maxWrap + 3*year
)

// makeClaims maps the rotation to the requirements of frameworks, each with its evidence.
// Every claim is rated by the audit chain, which holds the evidence.
func (c *collection) makeClaims() {
	c.report.Claims = []Claim{
		c.rateClaim(c.claimKeyProtection()), c.rateClaim(c.claimEncryption()),
		c.rateClaim(c.claimStrongKeys()), c.rateClaim(c.claimKeyChange()), c.rateClaim(c.claimKeyRetirement()), c.rateClaim(c.claimNoSubstitution()),
		claimNotCovered(),
		c.rateClaim(c.claimCryptoperiods()), c.rateClaim(c.claimKeyStates()),
	}
}

// rateClaim lowers a claim to what the audit chain supports.
func (c *collection) rateClaim(k Claim) Claim {
	v := c.report.Audit.Verification
	if m := v.Model; m != nil && len(m.Findings) > 0 && k.Status == Shown {
		k.Status = Partly
		k.Text += " But a record of the audit chain is not a step that a rotation may take."
	}
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

// findEvidence returns the rotation's records of the given types as evidence.
func (c *collection) findEvidence(events ...string) []Evidence {
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

// keyEvidence returns the states of the rotation's KEKs as evidence.
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

// isCompleted reports whether the rotation is completed. Most claims are fully shown only
// then.
func (c *collection) isCompleted() bool { return c.report.Rotation.Phase == kek.Completed }

// claimKeyProtection is about the life of the KEKs. It is fully shown only for a completed
// rotation, because the retirement belongs to that life.
func (c *collection) claimKeyProtection() Claim {
	k := Claim{
		Framework: soc2, Ref: "CC6.1", Status: Shown,
		Asks:     "Cryptographic keys are protected during generation, storage, use and destruction.",
		Text:     "The KEKs are KMS keys, which never leave KMS. The new one was made, tested and put in use, and the old one retired and disabled, each step recorded.",
		Evidence: append(c.findEvidence(kek.EventKEKMinted, kek.EventDualUnwrapPassed, kek.EventPointerSwitched, kek.EventOldKEKRetired, kek.EventRolledBack, kek.EventReminted), c.keyEvidence()...),
	}
	if !c.isCompleted() {
		k.Status, k.Text = Partly, "The KEKs are KMS keys, which never leave KMS. This rotation did not complete: it shows how the keys were handled as far as it came."
	}
	return k
}

// claimEncryption is about the rows. It needs a finished scan without quarantined rows: a
// row that was not read proves nothing.
func (c *collection) claimEncryption() Claim {
	k := Claim{
		Framework: soc2, Ref: "CC6.1", Status: NotShown,
		Asks:     "Data at rest is encrypted, under keys that are in use.",
		Text:     "No scan of this rotation has read every row under the new KEK.",
		Evidence: c.findEvidence(kek.EventRowsCounted, kek.EventRowsRehearsed, kek.EventRowsRewrapped, kek.EventOldKEKRetired, kek.EventRotationCompleted),
	}
	if t, ok := c.report.sumFinished(passVerify); ok && c.isCompleted() && t.Quarantined == 0 {
		k.Status = Shown
		k.Text = fmt.Sprintf("The last scan read %d rows in %d sources, and each names the new KEK.", t.Scanned, len(c.report.Rows))
		if t.Keyed > 0 {
			k.Text = fmt.Sprintf("The last scan read %d rows in %d sources. Each names the new KEK, except %d keyed rows: they name data keys, whose records are rows of the key table.",
				t.Scanned, len(c.report.Rows), t.Keyed)
		}
		if rec, ok := c.report.lastRecord(kek.EventRotationCompleted); ok && rec.Body["unwrapped"] != "" {
			k.Text += " Unwrapped under it: " + rec.Body["unwrapped"] + "."
		}
	}
	return k
}

// claimStrongKeys is about the generation of the new KEK. That KMS keeps keys in validated
// HSMs is AWS's evidence, so this claim is never fully shown.
func (c *collection) claimStrongKeys() Claim {
	k := Claim{
		Framework: pci, Ref: "3.6.1.2, 3.7.1", Status: NotShown,
		Asks:     "Strong keys are generated, and kept in a secure cryptographic device or under a key-encryption key at least as strong.",
		Text:     "This rotation made no key.",
		Evidence: append(c.findEvidence(kek.EventKEKMinted), c.keyEvidence()...),
	}
	if _, ok := c.report.lastRecord(kek.EventKEKMinted); ok {
		k.Status = Partly
		k.Text = "KMS generated the new KEK as SYMMETRIC_DEFAULT (256-bit AES-GCM) for ENCRYPT_DECRYPT. That KMS keeps it in a validated HSM is AWS's evidence (AWS Artifact), not this report's."
	}
	return k
}

// claimKeyChange is about the change of keys. After the switch alone it is partly shown,
// because rows may still be under the old KEK.
func (c *collection) claimKeyChange() Claim {
	p := c.report.Cryptoperiod
	k := Claim{
		Framework: pci, Ref: "3.7.4", Status: NotShown,
		Asks:     "Keys are changed at the end of their defined cryptoperiod.",
		Text:     "The old KEK was not changed: the pointer did not move.",
		Evidence: c.findEvidence(kek.EventRotationStarted, kek.EventPointerSwitched, kek.EventOldKEKSealed, kek.EventRowsRewrapped),
	}
	if !p.WrapTo.IsZero() {
		k.Status = Partly
		k.Text = fmt.Sprintf("The pointer moved off the old KEK on %s after %s. Rows may still be under it.", formatDay(p.WrapTo), formatDuration(p.WrapTo.Sub(p.WrapFrom)))
	}
	if c.isCompleted() {
		k.Status = Shown
		k.Text = fmt.Sprintf("The old KEK was changed on %s after %s in use, and every row of the registered sources was moved off it. The cryptoperiod that is to be kept is the entity's own.", formatDay(p.WrapTo), formatDuration(p.WrapTo.Sub(p.WrapFrom)))
	}
	return k
}

// claimKeyRetirement is about the old KEK. It is fully shown when KMS has refused it.
func (c *collection) claimKeyRetirement() Claim {
	r := c.report.Rotation
	k := Claim{
		Framework: pci, Ref: "3.7.5", Status: NotShown,
		Asks:     "Keys are retired or replaced when their cryptoperiod ends or when they may be compromised, and retired keys encrypt nothing.",
		Text:     "The old KEK is not retired.",
		Evidence: append(c.findEvidence(kek.EventRotationStarted, kek.EventOldKEKSealed, kek.EventOldKEKRetired, kek.EventRotationCompleted), c.keyEvidence()...),
	}
	old, ok := c.report.oldKEK()
	if ok && old.State == kek.Retired && r.Phase.Reached(kek.KEKRetired) {
		k.Status = Partly
		k.Text = "The old KEK is retired in the registry; verification has not shown yet that KMS refuses it."
		if c.isCompleted() && old.KMSState != unknown && !old.Enabled {
			k.Status = Shown
			k.Text = fmt.Sprintf("Sealed, then retired on %s and disabled in KMS, which refused to unwrap with it. It is not deleted, and must not be before %s.", formatDay(old.RetiredAt), formatDay(old.NotBeforeDelete))
		}
	}
	if r.Mode == kek.Emergency {
		k.Text += " This was an emergency: “" + r.Reason + "”."
	}
	return k
}

// claimNoSubstitution is about the pointer: one conditional transaction moved it.
func (c *collection) claimNoSubstitution() Claim {
	k := Claim{
		Framework: pci, Ref: "3.7.7", Status: NotShown,
		Asks:     "Unauthorized substitution of keys is prevented.",
		Text:     "The pointer did not move in this rotation.",
		Evidence: c.findEvidence(kek.EventKEKMinted, kek.EventPointerSwitched),
	}
	if rec, ok := c.report.lastRecord(kek.EventPointerSwitched); ok {
		k.Status = Shown
		k.Text = fmt.Sprintf("The pointer moved once, by %s, in a transaction conditional on the KEK it named before and on this rotation's lock, and to the key that dual unwrap had tested.", rec.Actor)
	}
	return k
}

// claimNotCovered lists requirements for which no rotation is evidence.
func claimNotCovered() Claim {
	return Claim{
		Framework: pci, Ref: "3.6.1.3, 3.6.1.4, 3.7.2, 3.7.3, 3.7.6, 3.7.8", Status: NotCovered, Evidence: []Evidence{},
		Asks: "Access by fewest custodians, fewest locations, secure distribution and storage, split knowledge, custodians' acknowledgement.",
		Text: "No rotation shows these: see the IAM policies of the stack, the key policies, and the entity's procedures. There are no cleartext key components, which KMS does not hand out.",
	}
}

// claimCryptoperiods compares the periods of the old KEK with the longest allowed ones.
func (c *collection) claimCryptoperiods() Claim {
	p := c.report.Cryptoperiod
	wrap, total := time.Duration(p.WrapMillis)*time.Millisecond, time.Duration(p.TotalMillis)*time.Millisecond
	k := Claim{
		Framework: nist, Ref: "5.3, Table 1", Status: Shown,
		Asks:     "A symmetric key-wrapping key wraps for at most 2 years, and unwraps for at most 3 years more.",
		Evidence: append(c.findEvidence(kek.EventPointerSwitched, kek.EventOldKEKSealed, kek.EventOldKEKRetired), c.keyEvidence()...),
	}
	k.Text = fmt.Sprintf("The old KEK could wrap for %s", formatDuration(wrap))
	if p.SealedAt.IsZero() {
		k.Text += " so far, and still can"
	}
	k.Text += fmt.Sprintf(", and could unwrap for %s", formatDuration(total))
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
		k.Status = worseStatus(k.Status, Partly)
		k.Text += " It was in use before it was registered here: its creation date in KMS says for how long (aws kms describe-key)."
	}
	return k
}

// worseStatus returns the weaker of two statuses.
func worseStatus(a, b Status) Status {
	if a == NotShown || b == NotShown {
		return NotShown
	}
	if a == Partly || b == Partly {
		return Partly
	}
	return a
}

// claimKeyStates maps the states of the registry to those of NIST SP 800-57, section 7.
func (c *collection) claimKeyStates() Claim {
	k := Claim{
		Framework: nist, Ref: "7", Status: Partly,
		Asks:     "Keys go through defined states: pre-activation, active, deactivated, compromised, destroyed.",
		Text:     "pending is pre-activation, active is active, draining and sealed are deactivated for wrapping, retired is deactivated for all use and disabled in KMS; none is destroyed by a rotation. This rotation has not taken its keys through all of them.",
		Evidence: c.findEvidence(kek.EventKEKMinted, kek.EventPointerSwitched, kek.EventOldKEKSealed, kek.EventOldKEKRetired, kek.EventRolledBack, kek.EventReminted),
	}
	if c.isCompleted() {
		k.Status = Shown
		k.Text = "pending is pre-activation, active is active, draining and sealed are deactivated for wrapping, retired is deactivated for all use and disabled in KMS; none is destroyed by a rotation. Each transition of both keys is a record, made in the transaction that made the transition."
	}
	return k
}

// formatDay is a date for a sentence.
func formatDay(t time.Time) string {
	if t.IsZero() {
		return "a date that is not set"
	}
	return t.UTC().Format("2006-01-02")
}

// formatDuration is a duration as a person says it.
func formatDuration(d time.Duration) string {
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
