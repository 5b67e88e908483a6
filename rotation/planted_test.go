package rotation_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/test/plant"
)

// planted are bugs in what makes a rotation cost no more than the one before, and in what is
// kept and shown of it, each with the package and the test that find it.
var planted = []struct {
	plant.Bug
	pkg, test string
}{
	{plant.Bug{Name: "the archive removes before it records", File: "internal/ddb/archive.go", With: []string{
		"if err := s.commitWithRecord(ctx, actions, ev, nil); err != nil {",
		"if _, err := s.sendTransaction(ctx, actions); err != nil {\n\t\treturn err\n\t}\n\tif err := s.commitWithRecord(ctx, nil, ev, nil); err != nil {",
	}}, "./rotation", "TestArchiveDies"},
	{plant.Bug{Name: "the archive removes the fence of a KEK that is not retired", File: "rotation/archive.go", With: []string{
		"dead[i.KEK] = v.KEKs[i.KEK].State == kek.Retired && !keptKEKs[i.KEK]", "dead[i.KEK] = !keptKEKs[i.KEK]",
		"dead[id] = !k.Enabled", "_ = k",
		"internal/ddb/archive.go", "",
		"if !checked[i.KEK] {", "if false {",
	}}, "./rotation", "TestArchiveKeeps"},
	{plant.Bug{Name: "the control table removes the fence of a KEK that is not retired", File: "internal/ddb/archive.go", With: []string{
		"if !checked[i.KEK] {", "if false {",
	}}, "./internal/ddb", "TestArchive"},
	{plant.Bug{Name: "the archive takes a rotation that runs", File: "rotation/archive.go", With: []string{
		"return err == nil && v.Rotation != nil && v.Rotation.Phase.Final(), err", "return err == nil && v.Rotation != nil, err",
		"keep(v.Holder)", "_ = v.Holder",
	}}, "./rotation", "TestArchiveKeeps"},
	{plant.Bug{Name: "the archive keeps what a forged checkpoint says", File: "rotation/archive.go", With: []string{
		"if proof != Proven {", "if false {",
		"kept.Proof = proof", "kept.Proof = Proven",
	}}, "./rotation", "TestArchiveForged"},
	{plant.Bug{Name: "a report counts a forged checkpoint", File: "internal/report/rows.go", With: []string{
		"p.Unproven++\n\t\t\tcontinue", "p.Unproven++",
	}}, "./internal/report", "TestReportOfForgedCheckpoints"},
	{plant.Bug{Name: "a report takes archived checkpoints from the control table", File: "internal/report/rows.go", With: []string{
		"; state != bucketSame {", "; state == bucketMissing {",
	}}, "./internal/report", "TestReportOfForgedCheckpoints"},
	{plant.Bug{Name: "a map child counted twice", File: "rotation/walk.go", With: []string{
		"if cp.Done && cp.Tally.Quarantined > 0 && !w.concludes {", "if cp.Done && !w.concludes {",
		"cp.Done = false\n\t}\n\tif !cp.Done && cp.Cursor == \"\" {", "cp.Done = false\n\t} else if !cp.Done && cp.Cursor == \"\" {",
	}}, "./rotation", "TestMapOfAPass"},
	{plant.Bug{Name: "a map child not counted", File: "rotation/sweep.go", With: []string{
		"out.Tally.addTally(cp.Tally)", "if i > 0 {\n\t\t\tout.Tally.addTally(cp.Tally)\n\t\t}",
	}}, "./rotation", "TestMapOfAPass"},
	{plant.Bug{Name: "a map child that is not done is taken for done", File: "rotation/sweep.go", With: []string{
		"if out.Done = out.Done && cp.Done; !cp.Done {", "if out.Done = out.Done && (cp.Done || cp.Cursor != \"\"); !cp.Done {",
	}}, "./rotation", "TestMapOfAPass"},
	{plant.Bug{Name: "a segment lost between two redrives", File: "rotation/sweep.go", With: []string{
		"if err != nil {\n\t\treturn err\n\t}\n\treturn s.resetCheckpoints(ctx, made)", "if err != nil {\n\t\treturn err\n\t}\n\treturn s.resetCheckpoints(ctx, made[1:])",
	}}, "./rotation", "TestTwoRedrives"},
	{plant.Bug{Name: "an insert passes a fence shard that is gone", File: "internal/controltable/controltable.go", With: []string{
		"cond := \"#state = :open\"", "cond := \"#state = :open OR attribute_not_exists(#state)\"",
	}}, "./rotation", "TestArchive"},
	{plant.Bug{Name: "a copy is written after the record", File: "source/deks/source.go", With: []string{
		"	if err := t.putCopy(ctx, after); err != nil {\n\t\treturn false, err\n\t}\n\treturn t.update(ctx, keyrecord.RewrapUpdate(t.table, h.record, after))",
		"	done, err := t.update(ctx, keyrecord.RewrapUpdate(t.table, h.record, after))\n\tif err != nil || !done {\n\t\treturn done, err\n\t}\n\treturn true, t.putCopy(ctx, after)",
	}}, "./rotation", "TestRecordsRewrapped"},
	{plant.Bug{Name: "a record is rewrapped whatever it has become", File: "internal/keyrecord/keyrecord.go", With: []string{
		"\"#wrapped_dek = :olddek AND #kek_id = :oldkek\"", "\"attribute_exists(pk) AND (#wrapped_dek = :olddek OR #wrapped_dek <> :olddek OR #kek_id = :oldkek)\"",
	}}, "./source/deks", "TestSource"},
	{plant.Bug{Name: "a pass removes records, which rows may name", File: "source/deks/source.go", With: []string{
		"	switch last := attr.Text(",
		"	for _, row := range page.Rows {\n\t\tif !req.Missing && !req.Whole && !req.Payload && row.Epoch > 1 {\n\t\t\titems := []types.TransactWriteItem{{Delete: &types.Delete{TableName: &t.table, Key: keyrecord.Key(row.ID)}}}\n" +
			"\t\t\t_, _ = t.client.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: items})\n\t\t}\n\t}\n\tswitch last := attr.Text(",
	}}, "./rotation", "TestRecordsRewrapped"},
	{plant.Bug{Name: "the second pass does not look for lost records", File: "rotation/retire.go", With: []string{
		"missing: true, ", "",
	}}, "./rotation", "TestLostRecords"},
	{plant.Bug{Name: "a record is put back past the fence", File: "source/deks/source.go", With: []string{
		"TransactWriteItemsInput{TransactItems: items})", "TransactWriteItemsInput{TransactItems: items[:1]})",
	}}, "./rotation", "TestPutBackBehindTheFence"},
	{plant.Bug{Name: "a rewrap of a record forgets its birth epoch", File: "internal/keyrecord/keyrecord.go", With: []string{
		"SET #wrapped_dek = :dek, #kek_id = :kek, #kek_epoch = :epoch\"", "SET #wrapped_dek = :dek, #kek_id = :kek, #kek_epoch = :epoch, born_epoch = :epoch\"",
	}}, "./rotation", "TestRecordsRewrapped"},
	{plant.Bug{Name: "the seal leaves the fence of records open", File: "internal/ddb/drainage.go", With: []string{
		"for _, pk := range fences {", "for _, pk := range fences[:1] {",
		"internal/ddb/apply.go", "",
		"if c.Sealed != \"\" {", "if c.Sealed != \"\" && pk == pkFence {",
	}}, "./internal/ddb", "TestRegistryInMemory"},
	{plant.Bug{Name: "doctor opens the fence of records of a KEK that is left", File: "rotation/doctor/exam.go", With: []string{
		"\t\tfenced = k.State == kek.Active\n\t\topens = k.State == kek.Active\n", "\t\tfenced = true\n\t\topens = true\n",
	}}, "./rotation/doctor", "TestRebuiltKeyFence"},
	{plant.Bug{Name: "keyed rows are not read although rows with data keys could be among them", File: "rotation/sources.go", With: []string{
		"err != nil || !r.RecordsOnly || r.Mode != kek.Normal", "err != nil || r.Mode != kek.Normal",
	}}, "./rotation", "TestKeyedRowsUnread"},
	{plant.Bug{Name: "a rotation forgets that its old KEK's fence of rows was open", File: "kek/view.go", With: []string{
		"return !v.KEKs[id].RecordsOnly })", "return v.KEKs[id].ID == \"\" })",
	}}, "./rotation", "TestKeyedRowsUnread"},
	{plant.Bug{Name: "doctor opens the fence of rows of a KEK that takes records alone", File: "rotation/doctor/exam.go", With: []string{
		"k.State == kek.Active && !k.RecordsOnly", "k.State == kek.Active",
		"e.replayed.fenced[k.ID]) && !k.RecordsOnly", "e.replayed.fenced[k.ID])",
	}}, "./rotation/doctor", "TestRecordsOnlyFence"},
	{plant.Bug{Name: "an emergency rewraps records and leaves keyed rows", File: "rotation/rekey.go", With: []string{
		"if err != nil || born >= r.Epoch {\n\t\treturn unexposed, err", "if err != nil || born > 0 {\n\t\treturn unexposed, err",
	}}, "./rotation", "TestEmergencyRekeys"},
	{plant.Bug{Name: "the walk of an emergency writes over another writer's row", File: "source/dynamodb/source.go", With: []string{
		"cond: \"#payload = :oldpayload\",", "cond: \"#payload = :oldpayload OR attribute_exists(#payload)\",",
		"c.cond += \" AND #dekid = :olddekid AND #epoch <= :epoch\"", "c.cond = \"(\" + c.cond + \") AND #dekid = :olddekid AND #epoch <= :epoch\"",
	}}, "./source/dynamodb", "TestReplaceKeyed"},
	{plant.Bug{Name: "a conversion loses a concurrent update", File: "source/dynamodb/source.go", With: []string{
		"unchanged.cond + \" AND #payload = :oldpayload AND", "unchanged.cond + \" AND (#payload = :oldpayload OR attribute_exists(#payload)) AND",
	}}, "./rotation", "TestConvertLosesToWriters"},
	{plant.Bug{Name: "a conversion does not ask for the row that it read", File: "source/dynamodb/source.go", With: []string{
		"unchanged.cond + \" AND #payload = :oldpayload AND attribute_not_exists(#dekid) AND (attribute_not_exists(#epoch) OR #epoch <= :epoch)\"",
		"\"(\" + unchanged.cond + \" AND #payload = :oldpayload) OR attribute_exists(#payload)\"",
	}}, "./rotation", "TestConvertLosesToWriters"},
	{plant.Bug{Name: "a conversion under an old data key", File: "rotation/keystock.go", With: []string{
		"line.key.epoch < epoch || full", "full",
		"rotation/convert.go", "",
		"if was != nil && was.Pointer.Epoch != v.Pointer.Epoch {", "if false {",
		"rotation/convertrow.go", "",
		"if key.epoch < row.Epoch {", "if false {",
		"source/dynamodb/source.go", "",
		"(attribute_not_exists(#epoch) OR #epoch <= :epoch)", "(attribute_not_exists(#epoch) OR #epoch <= :epoch OR #epoch > :epoch)",
	}}, "./rotation", "TestConvertUnderOldKey"},
	{plant.Bug{Name: "a keyed row becomes an embedded one past the fence", File: "source/dynamodb/embed.go", With: []string{
		"TransactWriteItemsInput{TransactItems: items})", "TransactWriteItemsInput{TransactItems: items[:1]})",
	}}, "./rotation", "TestConvertLosesToWriters"},
	{plant.Bug{Name: "a conversion writes a row before its data key has a record", File: "rotation/rekey.go", With: []string{
		"done, err := keeper.CreateKey(ctx, record, wrapped)", "done, err := true, error(nil)\n\tdefer func() { _, _ = keeper.CreateKey(context.WithoutCancel(ctx), source.Row{}, wrapped) }()",
	}}, "./rotation", "TestConvert"},
	{plant.Bug{Name: "a verification trusts the anchor that it begins at", File: "audit/anchors.go", With: []string{
		"p := v.checkAnchor(key, a, at, stored)", "p := anchorTrust{}\n\t\tif v.Start == nil || n != v.Start.Anchor.N {\n\t\t\tp = v.checkAnchor(key, a, at, stored)\n\t\t}",
	}}, "./audit", "TestStartIsProved"},
	{plant.Bug{Name: "a verification does not compare the anchor that it begins at", File: "audit/verify.go", With: []string{
		"v.Known = append(slices.Clone(p.Known), p.Start.Anchor)", "_ = slices.Clone(p.Known)",
	}}, "./audit", "TestStartOfAnotherAnchor"},
}

// TestPlantedBugs: each bug still fits the sources. With MATTER_MUTANTS=1 it is planted, and
// its test must find it.
func TestPlantedBugs(t *testing.T) {
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range planted {
		t.Run(b.Name, func(t *testing.T) {
			if _, err := b.Files(root); err != nil {
				t.Fatal(err)
			}
			if os.Getenv("MATTER_MUTANTS") != "1" {
				return
			}
			overlay, err := b.Overlay(root, t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), "go", "test", "-overlay", overlay, "-run", "^"+b.test+"$", b.pkg)
			cmd.Dir = root
			out, err := cmd.CombinedOutput()
			if err == nil || !strings.Contains(string(out), "--- FAIL: "+b.test) {
				t.Errorf("%s does not find it: %v\n%s", b.test, err, out)
			}
		})
	}
}
