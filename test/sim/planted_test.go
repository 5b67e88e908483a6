package sim

import (
	"slices"

	"github.com/matter-ops/kms-rotation/test/plant"
)

var mutants = slices.Concat(embeddedBugs, keyedBugs)

var embeddedBugs = []plant.Bug{
	{Name: "skip the seal", File: "rotation/drain.go", With: []string{
		"for i := range v.KEKs[id].FenceShards {", "for i := range v.KEKs[id].FenceShards * 0 {",
		"kek/view.go", "",
		"c.Sealed, c.Shards = draining[0], m.After.FenceShards", "_ = m",
	}},
	{Name: "seal all fence shards but one", File: "rotation/drain.go", With: []string{
		"for i := range v.KEKs[id].FenceShards {", "for i := range v.KEKs[id].FenceShards - 1 {",
		"kek/view.go", "",
		"c.Sealed, c.Shards = draining[0], m.After.FenceShards", "c.Sealed, c.Shards = draining[0], m.After.FenceShards-1",
	}},
	{Name: "unconditional pointer write", File: "test/memstore/store.go", With: []string{
		"if err := s.conditions(c); err != nil {", "if c.Pointer != nil {\n\t\t\tp := c.Pointer.After\n\t\t\ts.pointer = &p\n\t\t}\n\t\tif err := s.conditions(c); err != nil {",
		"case c.Pointer != nil && !s.pointsAt(c.Pointer.Before):", "case c.Pointer != nil && c.Pointer.Before == nil && false:",
	}},
	{Name: "rewrap upserts", File: "test/memstore/table.go", With: []string{
		"case r == nil || with.Ciphertext != nil &&", "case r == nil:\n\t\t\tt.plant(old.ID, Record{KEK: with.KEK, Epoch: with.Epoch, Version: 1, WrappedDEK: with.WrappedDEK, Context: old.Context})\n\t\t\tdone = true\n\t\t\treturn true, nil\n\t\tcase with.Ciphertext != nil &&",
	}},
	{Name: "rewrap overwrites a row that has changed", File: "test/memstore/table.go", With: []string{
		"if r == nil || r.Other || r.Declared || r.naming() != h.named || !bytes.Equal(r.WrappedDEK, old.WrappedDEK) {", "if r == nil {",
	}},
	{Name: "rewrap leaves the row's epoch and version", File: "test/memstore/table.go", With: []string{
		"r.KEK, r.KeyARN, r.Epoch, r.WrappedDEK = with.KEK, \"\", with.Epoch, bytes.Clone(with.WrappedDEK)", "r.KEK, r.WrappedDEK = with.KEK, bytes.Clone(with.WrappedDEK)",
		"r.Version++", "",
	}},
	{Name: "disable before the registry", File: "rotation/retire.go", With: []string{
		"v, err = s.Journal.TransitionAll(ctx, \"retire\", id, func", "if err := s.Keys.Admin.Disable(ctx, r.OldKEK); err != nil {\n\t\treturn RetireOutput{}, journal.WrapUnavailable(\"KMS DisableKey\", err)\n\t}\n\tv, err = s.Journal.TransitionAll(ctx, \"retire\", id, func",
	}},
	{Name: "retire without the second scan", File: "rotation/retire.go", With: []string{
		"confirmed, err = s.confirmRows(ctx, v, r)", "confirmed = SweepOutput{Done: true, read: s.Journal.Now()}",
	}},
	{Name: "retire before its turn", File: "rotation/retire.go", With: []string{
		"if !r.Phase.Reached(kek.Rewrapped) {", "if false {",
		"err = s.checkAge(confirmed.read)", "err = nil",
		"kek/view.go", "",
		"r, err := v.stepPhaseAt(Rewrapped, KEKRetired, rev)", "from := Rewrapped\n\tif v.Rotation != nil && v.Rotation.Phase == Drained {\n\t\tfrom = Drained\n\t}\n\tr, err := v.stepPhaseAt(from, KEKRetired, rev)",
	}},
	{Name: "drain trusts the clock", File: "rotation/drain.go", With: []string{
		"if gone, err = s.Drainage.Revoke(ctx, l); err != nil {", "if gone = true; err != nil {",
	}},
	{Name: "mint without the arbiter", File: "rotation/mint.go", With: []string{
		"if owner, err = s.Keys.Admin.Claim(ctx, r.ID, r.Attempt, made.ID); err != nil {", "if owner = made.ID; err != nil {",
	}},
	{Name: "sweep of keys during a mint", File: "rotation/mint.go", With: []string{
		"if r.NewKEK == \"\" && !r.Phase.Final() {", "if false {",
	}},
	{Name: "losers of a mint stay enabled", File: "rotation/mint.go", With: []string{
		"if slices.Contains(keep, k) || v.KEKs[k].State.Resolves() {", "if slices.Contains(keep, k) || true {",
	}},
	{Name: "audit record outside the transaction", File: "test/memstore/store.go", With: []string{
		"func (s *Store) Apply(ctx context.Context, c kek.Change, ev audit.Event) error {\n\treturn s.w.answer(", "func (s *Store) Apply(ctx context.Context, c kek.Change, ev audit.Event) error {\n\terr := s.w.answer(",
		"if err := s.append(ev); err != nil { // the one thing that can still fail\n\t\t\treturn s.head.Seq, fmt.Errorf(\"apply %s: %w\", c.Event, err)\n\t\t}", "",
		"return s.head.Seq, nil\n\t}, c, ev)\n}", "return s.head.Seq, nil\n\t}, c, ev)\n\tif err != nil {\n\t\treturn err\n\t}\n\treturn s.Record(ctx, ev)\n}",
	}},
	{Name: "a step returns before its record is in the bucket", File: "rotation/journal/journal.go", With: []string{
		"return j.Publish(ctx)\n\t\t}\n\t\tif err != nil {", "return nil\n\t\t}\n\t\tif err != nil {",
	}},
	{Name: "records are marked published before they are put", File: "rotation/journal/journal.go", With: []string{
		"for _, e := range entries {\n", "if len(entries) > 0 {\n\t\t_ = j.Outbox.MarkPublished(ctx, entries[len(entries)-1].Record.Seq)\n\t}\n\tfor _, e := range entries {\n",
	}},
	{Name: "PreSwitchFailure after the switch", File: "kek/view.go", With: []string{
		"case !r.Phase.PreSwitch():", "case r.Phase.Final():",
		"moves, err := v.retireNew(r, \"pre-switch failure\", now)", "moves, err := []KEKMove(nil), error(nil)\n\tif r.Phase.PreSwitch() {\n\t\tmoves, err = v.retireNew(r, \"pre-switch failure\", now)\n\t}",
	}},
	{Name: "an emergency rolls back", File: "kek/view.go", With: []string{
		"if r.Mode == Emergency {\n\t\treturn Change{}, &IllegalTransition{What: \"emergency", "if false {\n\t\treturn Change{}, &IllegalTransition{What: \"emergency",
	}},
	{Name: "the fence is skipped on insert", File: "test/memstore/fence.go", With: []string{
		"return opened && !sealed", "return opened && !sealed || true",
	}},
	{Name: "an update ignores the row's epoch", File: "test/memstore/table.go", With: []string{
		"was.Version != read || was.Epoch > r.Epoch {", "was.Version != read {",
		"r.Version++", "",
	}},
	{Name: "a start ignores the lock", File: "kek/view.go", With: []string{
		"if v.Lock != \"\" && v.Lock != r.ID {", "if false {",
		"test/memstore/store.go", "",
		"if s.lock != id && (c.Lock != kek.LockTake || s.lock != \"\") {", "if id == \"\" {",
	}},
	{Name: "an emergency leaves the pointer's KEK alone", File: "kek/view.go", With: []string{
		"if id != current && k.State.Resolves() {", "if id != current && k.State == Sealed && k.RotationID == \"\" {",
	}},
	{Name: "an emergency forgets what the other had retired", File: "kek/view.go", With: []string{
		"r.Leftover = append(r.Leftover, other.Olds...)", "_ = r",
	}},
	{Name: "an emergency seals one KEK and continues", File: "kek/view.go", With: []string{
		"if len(draining) == 1 {", "if len(draining) > 0 {",
	}},
	{Name: "an emergency only rewraps", File: "rotation/rewrap.go", With: []string{
		"if r.Mode != kek.Emergency || row.Whole {", "if true {",
	}},
	{Name: "an object in a record's place counts as the record", File: "rotation/journal/journal.go", With: []string{
		"return &met{e.Record.Seq, taken}, nil", "continue",
	}},
	{Name: "a table that was set back is not refused", File: "rotation/preflight.go", With: []string{
		"if err != nil && r.Mode == kek.Emergency && !journal.GivesUpKEK(c) {", "if err != nil {",
	}},
	{Name: "doctor overlooks the bucket's later records", File: "rotation/doctor/chain.go", With: []string{
		"if len(records) > 0 {\n\t\t\tc.branches", "if len(records) > 1000 {\n\t\t\tc.branches",
	}},
	{Name: "doctor leaves fences of left KEKs open", File: "rotation/doctor/exam.go", With: []string{
		"case f.Open == opens, k.State == kek.Draining && (!f.Open || records || !k.RecordsOnly):", "case f.Open, f.Open == opens:",
	}},
	{Name: "unconditional writes of the registry", File: "internal/ddb/apply.go", With: []string{
		"func (s *Store) putItem(what string, i item, c condition) action {\n", "func (s *Store) putItem(what string, i item, c condition) action {\n\tc = condition{expr: \"attribute_exists(#pk) OR attribute_not_exists(#pk)\"}\n",
	}},
	{Name: "the pointer is written by itself", File: "internal/ddb/apply.go", With: []string{
		"\tactions, err := s.buildActions(c)\n", "\tif c.Pointer != nil {\n\t\tin := &dynamodb.PutItemInput{TableName: &s.table, Item: controltable.EncodePointer(c.Pointer.After)}\n\t\tif _, err := s.client.PutItem(ctx, in); err != nil {\n\t\t\treturn err\n\t\t}\n\t\tc.Pointer.Before = &c.Pointer.After\n\t}\n\tactions, err := s.buildActions(c)\n",
	}},
	{Name: "outbox outside of the transaction", File: "internal/ddb/apply.go", With: []string{
		"\tif err := s.commitWithRecord(ctx, actions, ev, nil); err != nil {", "\tif _, err := s.sendTransaction(ctx, actions); err != nil {\n\t\treturn fmt.Errorf(\"apply %s: %w\", c.Event, err)\n\t}\n\tif err := s.commitWithRecord(ctx, nil, ev, nil); err != nil {",
	}},
	{Name: "the lock is taken over", File: "internal/ddb/apply.go", With: []string{
		"\"attribute_not_exists(#pk) OR \" + ours.expr", "\"attribute_not_exists(#pk) OR attribute_exists(#pk) OR \" + ours.expr",
		"kek/view.go", "",
		"if v.Lock != \"\" && v.Lock != r.ID {", "if false {",
	}},
	{Name: "rewrap upserts (DynamoDB)", File: "source/dynamodb/source.go", With: []string{
		"c.cond, c.values[\":oldkek\"] = \"#held = :oldheld AND #kek = :oldkek\", h.kek", "c.cond, c.values[\":oldkek\"] = \"attribute_not_exists(#kek) OR #held = :oldheld AND #kek = :oldkek\", h.kek",
	}},
	{Name: "rewrap overwrites a row that has changed (DynamoDB)", File: "source/dynamodb/source.go", With: []string{
		"c.cond, c.values[\":oldkek\"] = \"#held = :oldheld AND #kek = :oldkek\", h.kek", "c.cond, c.values[\":oldkek\"] = \"attribute_exists(#kek) OR #held = :oldheld AND #kek = :oldkek\", h.kek",
	}},
	{Name: "rewrap leaves the row's epoch and version (DynamoDB)", File: "source/dynamodb/source.go", With: []string{
		"c.update = \"SET #kek = :kek, #held = :held, #epoch = :epoch\"", "c.update = \"SET #kek = :kek, #held = :held, #epoch = if_not_exists(#epoch, :epoch)\"",
	}},
	{Name: "rewrap looks, then writes", File: "source/dynamodb/source.go", With: []string{
		"c, err := t.replaceRow(\"replace\", old, with)\n", "c, err := t.replaceRow(\"replace\", old, with)\n\tif err == nil {\n\t\tout, err := t.client.GetItem(ctx, &dynamodb.GetItemInput{TableName: &t.cfg.Table, Key: c.key, ConsistentRead: aws.Bool(true)})\n\t\tif err != nil {\n\t\t\treturn false, err\n\t\t}\n\t\tr := attr.Reader{Item: out.Item}\n\t\tif r.Str(t.cfg.KEKID) != string(old.KEK) || string(r.Bytes(t.cfg.WrappedDEK)) != string(old.WrappedDEK) {\n\t\t\treturn false, nil\n\t\t}\n\t\tc.cond = \"attribute_exists(#kek) OR \" + c.cond\n\t}\n",
	}},
	{Name: "an emergency's rewrap overwrites another payload", File: "source/dynamodb/source.go", With: []string{
		"c.cond+\" AND #payload = :oldpayload\"", "c.cond+\" AND (#payload = :oldpayload OR attribute_exists(#payload))\"",
	}},
	{Name: "a seal leaves the fence open", File: "internal/ddb/drainage.go", With: []string{
		"EncodeFence(pk, id, shard, controltable.Sealed)", "EncodeFence(pk, id, shard, controltable.Open)",
		"internal/ddb/apply.go", "",
		"if c.Sealed != \"\" {", "if c.Sealed != \"\" && i < 0 {",
	}},
	{Name: "revoke takes a lease that was renewed", File: "internal/ddb/drainage.go", With: []string{
		"cond := \"#expires_at = :expires_at\"", "cond := \"#expires_at = :expires_at OR attribute_exists(#expires_at)\"",
	}},
	{Name: "revoke looks, then deletes", File: "internal/ddb/drainage.go", With: []string{
		"\tcond := \"#expires_at = :expires_at\"\n", "\ti, err := getItem(ctx, s.client, s.table, controltable.LeasePK(l.KEK), l.Holder)\n\tif r := (&attr.Reader{Item: i}); err != nil || i == nil || r.Num(\"expires_at\") != l.Expires.UnixMilli() {\n\t\treturn false, err\n\t}\n\tcond := \"#expires_at = :expires_at OR attribute_exists(#expires_at)\"\n",
		"_, err := s.client.DeleteItem(ctx, &dynamodb.DeleteItemInput{\n", "_, err = s.client.DeleteItem(ctx, &dynamodb.DeleteItemInput{\n",
	}},
	{Name: "leases are listed without the last", File: "internal/ddb/drainage.go", With: []string{
		"for _, i := range items {\n\t\tl, err := decodeLease(i)", "for _, i := range items[:max(len(items), 1)-1] {\n\t\tl, err := decodeLease(i)",
	}},
	{Name: "the fence is skipped on insert (envelope)", File: "envelope/table.go", With: []string{
		"return append(writes[:len(writes):len(writes)], t.fenceCheck(h, shard))", "return writes",
	}},
	{Name: "an update ignores the row's epoch and ciphertext (envelope)", File: "envelope/table.go", With: []string{
		"cond := fmt.Sprintf(\"%s = %s AND \", payload, e.addValue(old.item[t.cfg.Ciphertext]))", "cond := fmt.Sprintf(\"attribute_exists(%s) AND \", payload)",
		"cond += fmt.Sprintf(\"%s <= %s\", epoch, e.addValue(set[t.cfg.Epoch]))", "cond += fmt.Sprintf(\"attribute_exists(%s)\", epoch)",
	}},
	{Name: "an update ignores the row's ciphertext (envelope)", File: "envelope/table.go", With: []string{
		"cond := fmt.Sprintf(\"%s = %s AND \", payload, e.addValue(old.item[t.cfg.Ciphertext]))", "cond := fmt.Sprintf(\"attribute_exists(%s) AND \", payload)",
	}},
	{Name: "a refused writer gives up", File: "envelope/write.go", With: []string{
		"!v.retry && !v.fenced && !disabled", "!v.retry",
	}},
	{Name: "a reader does not read again", File: "envelope/open.go", With: []string{
		"if !errors.Is(err, errSuspect) && !errors.Is(err, ErrKeyUnusable) {", "if plain != nil || err != nil {",
	}},
	{Name: "a data key outlives its KEK", File: "envelope/lease.go", With: []string{
		"\th.renewed = c.elapsedTime()\n", "\tif was := c.current.Load(); was != nil {\n\t\th.sealing = was.sealing\n\t}\n\th.renewed = c.elapsedTime()\n",
		"old.sealing.dropAll(true)", "_ = old.sealing",
	}},
	{Name: "a lease is given back that is referred to", File: "envelope/lease.go", With: []string{
		"if superseded && l.Refs == 0 {", "if superseded {",
	}},
	{Name: "leases are not renewed", File: "envelope/lease.go", With: []string{
		"if l.Refs == h.written && now-h.renewed < c.cfg.LeaseTTL/3 {", "if now > 0 {",
	}},
	{Name: "a thawed process trusts a read that it slept over", File: "envelope/lease.go", With: []string{
		"err != nil && now-at < 2*c.cfg.PointerAge {", "err != nil && now >= at {",
	}},
	{Name: "drain before the switch", File: "rotation/drain.go", With: []string{
		"if r.Phase == kek.Switched {", "if !r.Phase.Reached(kek.Drained) {",
		"case v.Rotation == nil || v.Rotation.Phase != kek.Switched || v.Pointer == nil || v.Pointer.KEKID == r.OldKEK:", "case v.Rotation == nil:",
	}},
	{Name: "retire does not look at unaccounted rows", File: "rotation/retire.go", With: []string{
		"if err := quarantineError(out, r.ID); err != nil {", "if err := error(nil); err != nil {",
	}},
	{Name: "a source that is added after the switch does not join", File: "kek/registry.go", With: []string{
		"join(&after)", "_ = join",
	}},
	{Name: "retire does not ask whether a source has joined", File: "kek/view.go", With: []string{
		"if err == nil && r.Rev != rev {", "if err == nil && r.Rev != rev && to != KEKRetired {",
	}},
	{Name: "retire ignores the marks of writers", File: "kek/view.go", With: []string{
		"if forgotten := Forgotten(v.Marks, r.Sources); len(forgotten) > 0 {", "if forgotten := Forgotten(v.Marks, r.Sources); len(forgotten) > 0 && r.ID == \"\" {",
	}},
	{Name: "a start ignores the marks of writers", File: "kek/view.go", With: []string{
		"len(forgotten) > 0 && r.Mode == Normal {", "len(forgotten) > 0 && r.Mode == Emergency {",
	}},
	{Name: "a start does not ask whether a source was added", File: "kek/view.go", With: []string{
		"AtRegistry: &v.Registry, ", "",
	}},
	{Name: "a census does not look at unaccounted rows", File: "rotation/census.go", With: []string{
		"if n := out.Tally.Quarantined; n > 0 {", "if n := out.Tally.Quarantined; n > 0 && sources == nil {",
	}},
	{Name: "a source is removed whatever it holds", File: "rotation/sources.go", With: []string{
		"if err := s.checkUnused(ctx, v, def); err != nil {", "if err := s.checkUnused(ctx, v, def); err != nil && v.Registry == 0 {",
	}},
	{Name: "a dry run of adopt labels rows", File: "rotation/adopt.go", With: []string{
		"if !a.write {", "if a.out == nil {",
	}},
	{Name: "adopt labels a row that has changed", File: "test/memstore/table.go", With: []string{
		"r, err := t.find(\"label\", old)", "r, err := t.rows[old.Handle.(handle).id], error(nil)",
	}},
	{Name: "adopt labels a row that has changed (DynamoDB)", File: "source/dynamodb/source.go", With: []string{
		"c.update = \"SET #kek = :kek\"\n", "c.update = \"SET #kek = :kek\"\n\tc.cond = \"attribute_exists(#held) OR \" + c.cond\n",
	}},
}
