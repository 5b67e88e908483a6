package envelope_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/test/plant"
)

// planted are bugs of keyed rows, and the test that finds each.
var planted = []struct {
	plant.Bug
	test string // of package envelope, unless it says another one
}{
	{plant.Bug{Name: "a record is created after the seal", File: "internal/keyrecord/keyrecord.go", With: []string{
		"	return check\n}",
		"	check.ConditionExpression, check.ExpressionAttributeNames, check.ExpressionAttributeValues = aws.String(\"attribute_exists(pk)\"), nil, nil\n	return check\n}",
	}}, "TestSealedFence"},
	{plant.Bug{Name: "a record is created under the fence for rows", File: "internal/keyrecord/keyrecord.go", With: []string{
		"	check.Key = controltable.Key(FencePK(id), controltable.FenceSK(shard))\n", "",
	}}, "internal/keyrecord TestCreate"},
	{plant.Bug{Name: "a record is written over another", File: "internal/keyrecord/keyrecord.go", With: []string{
		`aws.String("attribute_not_exists(#pk)")`, `aws.String("attribute_not_exists(#pk) OR attribute_exists(#pk)")`,
	}}, "internal/keyrecord TestCreate"},
	{plant.Bug{Name: "a record is rewrapped without a condition", File: "internal/keyrecord/keyrecord.go", With: []string{
		`"#wrapped_dek = :olddek AND #kek_id = :oldkek"`, `"#wrapped_dek = :olddek OR attribute_exists(pk) AND #kek_id <> :oldkek OR #kek_id = :oldkek"`,
	}}, "internal/keyrecord TestRewrap"},
	{plant.Bug{Name: "a row names a DEK that was never stored", File: "envelope/keyed.go", With: []string{
		"	v, err := c.storeRecord(ctx, h, r)\n	return k, v, err", "	return k, refusal{}, nil",
	}}, "TestKeyedLife"},
	{plant.Bug{Name: "a row names a DEK whose record was refused", File: "envelope/keyed.go", With: []string{
		"	case reasons[1] == controltable.Condition:\n		return refusal{fenced: true}, what(err)", "	case reasons[1] == controltable.Condition:\n		return refusal{}, nil",
	}}, "TestSealedFence"},
	{plant.Bug{Name: "the record is stored before its copy", File: "envelope/keyed.go", With: []string{
		"	if err := keyrecord.PutCopy(ctx, c.cfg.Keys.S3, c.cfg.Keys.Bucket, r); err != nil {\n		return nil, refusal{}, err\n	}\n	v, err := c.storeRecord(ctx, h, r)\n	return k, v, err",
		"	v, err := c.storeRecord(ctx, h, r)\n	if err := keyrecord.PutCopy(ctx, c.cfg.Keys.S3, c.cfg.Keys.Bucket, r); err != nil {\n		return nil, refusal{}, err\n	}\n	return k, v, err",
	}}, "TestCreationOrder"},
	{plant.Bug{Name: "somebody else's record counts as one's own", File: "envelope/keyed.go", With: []string{
		"; string(stored.WrappedDEK) == string(r.WrappedDEK) {", "; string(stored.WrappedDEK) != string(r.WrappedDEK) || true {",
	}}, "TestRepeatedCreation"},
	{plant.Bug{Name: "the row's key is not bound", File: "internal/rowschema/rowschema.go", With: []string{
		"		out[BoundKey+name] = text\n", "		_ = text\n",
	}}, "TestMovedRows"},
	{plant.Bug{Name: "the DEK's id is not bound", File: "internal/rowschema/rowschema.go", With: []string{
		"	out[keyrecord.ContextDEKID] = dekID\n", "",
	}}, "TestVectorsKeyed"},
	{plant.Bug{Name: "KMS is not told the DEK's id", File: "internal/keyrecord/keyrecord.go", With: []string{
		"	out[ContextDEKID] = r.DEKID\n", "",
	}}, "TestForgedRecords"},
	{plant.Bug{Name: "KMS is not told the birth epoch", File: "internal/keyrecord/keyrecord.go", With: []string{
		"	out[ContextBornEpoch] = strconv.FormatInt(r.BornEpoch, 10)\n", "	_ = strconv.Itoa\n",
	}}, "TestForgedRecords"},
	{plant.Bug{Name: "the row's epoch is believed", File: "envelope/keyedopen.go", With: []string{"k.bornEpoch != r.Epoch || ", ""}}, "TestMovedRows"},
	{plant.Bug{Name: "the row's context is believed", File: "envelope/keyedopen.go", With: []string{
		" || string(k.associated) != string(aead.AssociatedData(r.encctx))", "",
	}}, "TestMovedRows"},
	{plant.Bug{Name: "a DEK is used past its records", File: "envelope/keyed.go", With: []string{"k.used.uses < s.bounds.MaxUses && ", ""}}, "TestKeyBounds"},
	{plant.Bug{Name: "a DEK is used past its bytes", File: "envelope/keyed.go", With: []string{
		" && (k.used.uses == 0 || k.used.bytes+int64(w.size) <= s.bounds.MaxBytes)", "",
	}}, "TestKeyBounds"},
	{plant.Bug{Name: "a DEK is used past its age", File: "envelope/keyed.go", With: []string{"w.now-k.born < s.bounds.MaxAge && ", ""}}, "TestNobodyWaits"},
	{plant.Bug{Name: "the next DEK is made when the last has ended", File: "envelope/keyed.go", With: []string{
		"	if s.nearsEnd(l.current, w) && ", "	if false && ",
	}}, "TestNobodyWaits"},
	{plant.Bug{Name: "an emergency leaves DEKs in use", File: "envelope/lease.go", With: []string{
		"			c.keyed.dropEarlier(h.pointer.Epoch)\n", "",
	}}, "TestEmergencyDropsKeys"},
	{plant.Bug{Name: "a DEK that was on its way outlives an emergency", File: "envelope/keyed.go", With: []string{
		"	case !s.closed && call.key.bornEpoch >= s.floor:", "	case !s.closed:",
		"k.bornEpoch >= max(w.least, s.floor)", "k.bornEpoch >= w.least",
	}}, "TestSupplyAtASwitch"},
	{plant.Bug{Name: "an update brings a row back under an earlier DEK", File: "envelope/table.go", With: []string{
		"		cond += fmt.Sprintf(\"%s <= %s\", epoch, e.addValue(set[t.cfg.Epoch]))", "		cond += fmt.Sprintf(\"%s <> %s\", epoch, e.addValue(attr.Num(0)))",
		"t.sealRow(ctx, h, at, row, &old)", "t.sealRow(ctx, h, at, row, &storedRow{})",
	}}, "TestKeyedRotation"},
	{plant.Bug{Name: "an embedded update makes a row both kinds", File: "envelope/table.go", With: []string{
		"	if t.cfg.DEKID != \"\" && !t.isKeyed() && old.dekID == \"\" {", "	if false {",
	}}, "TestEmbeddedOverKeyed"},
	{plant.Bug{Name: "a keyed row becomes embedded without a fence", File: "envelope/table.go", With: []string{
		"(old.Epoch <= 0 || old.dekID != \"\")", "old.Epoch <= 0",
	}}, "TestBackUnderSealedFence"},
	{plant.Bug{Name: "a KEK that a record names is believed", File: "envelope/keyedopen.go", With: []string{
		"	if !known.State.Resolves() {\n		return nil, errSuspect\n	}\n", "",
	}}, "TestForgedRecords"},
	{plant.Bug{Name: "a record is read once", File: "envelope/keyedopen.go", With: []string{"		if settled || ", "		if true || settled || "}}, "TestStaleRecord"},
	{plant.Bug{Name: "a row is not read again", File: "envelope/keyedopen.go", With: []string{
		"	if !ok {\n		return nil, errSuspect\n	}", "	if !ok {\n		return nil, ErrUnknownDEK\n	}",
	}}, "TestUnknownDEK"},
	{plant.Bug{Name: "a walk loses a concurrent update", File: "source/dynamodb/source.go", With: []string{
		`cond: "#payload = :oldpayload",`, `cond: "#payload <> :oldpayload OR #payload = :oldpayload",`,
	}}, "source/dynamodb TestReplaceKeyed"},
	{plant.Bug{Name: "a conversion loses a concurrent update", File: "source/dynamodb/source.go", With: []string{
		`" AND #payload = :oldpayload AND attribute_not_exists(#dekid)`, `" AND (#payload <> :oldpayload OR #payload = :oldpayload) AND attribute_not_exists(#dekid)`,
	}}, "source/dynamodb TestReplaceKeyed"},
	{plant.Bug{Name: "a walk brings a row back under an earlier DEK", File: "source/dynamodb/source.go", With: []string{
		" AND #dekid = :olddekid AND #epoch <= :epoch", " AND #dekid = :olddekid",
	}}, "source/dynamodb TestReplaceKeyed"},
	{plant.Bug{Name: "an item of both kinds is a keyed row", File: "source/dynamodb/classify.go", With: []string{
		"cmp.Or(c.checkOneKind(i), c.checkTypes(i), unreadable, c.checkKeyed", "cmp.Or(c.checkTypes(i), unreadable, c.checkKeyed",
	}}, "source/dynamodb TestKeyedDefects"},
}

// TestPlantedBugs: with MATTER_MUTANTS each bug is built into the test that finds it, which
// must fail; without it, each still fits the sources. What only a schedule finds is in
// test/sim.
func TestPlantedBugs(t *testing.T) {
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, bug := range planted {
		t.Run(bug.Name, func(t *testing.T) {
			if os.Getenv("MATTER_MUTANTS") == "" {
				if _, err := bug.Files(root); err != nil {
					t.Error(err)
				}
				return
			}
			list, err := bug.Overlay(root, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			pkg, test, ok := strings.Cut(bug.test, " ")
			if !ok {
				pkg, test = "envelope", bug.test
			}
			cmd := exec.CommandContext(t.Context(), "go", "test", "-overlay", list, "-run", "^"+test+"$", "./"+pkg)
			cmd.Dir = root
			out, err := cmd.CombinedOutput()
			if !bytes.Contains(out, []byte("--- FAIL: "+test)) {
				t.Errorf("%s does not find it: %v\n%s", test, err, out)
			}
		})
	}
}
