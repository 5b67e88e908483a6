package sim

// mutant is a bug planted in the sources: texts that are replaced, each of which
// must be there exactly once.
type mutant struct {
	name string
	file string
	with []string // old, new, old, new, …; a word that ends in .go changes the file
}

var mutants = []mutant{
	{"skip the seal", "rotation/drain.go", []string{
		"for i := range v.KEKs[r.OldKEK].FenceShards {", "for i := range v.KEKs[r.OldKEK].FenceShards * 0 {",
		"kek/view.go", "",
		"c.Sealed, c.Shards = r.OldKEK, m.After.FenceShards", "_ = m",
	}},
	{"seal all fence shards but one", "rotation/drain.go", []string{
		"for i := range v.KEKs[r.OldKEK].FenceShards {", "for i := range v.KEKs[r.OldKEK].FenceShards - 1 {",
		"kek/view.go", "",
		"c.Sealed, c.Shards = r.OldKEK, m.After.FenceShards", "c.Sealed, c.Shards = r.OldKEK, m.After.FenceShards-1",
	}},
	{"unconditional pointer write", "internal/memstore/store.go", []string{
		"if err := s.conditions(c); err != nil {", "if c.Pointer != nil {\n\t\t\tp := c.Pointer.After\n\t\t\ts.pointer = &p\n\t\t}\n\t\tif err := s.conditions(c); err != nil {",
		"case c.Pointer != nil && !s.pointsAt(c.Pointer.Before):", "case c.Pointer != nil && c.Pointer.Before == nil && false:",
	}},
	{"rewrap upserts", "internal/memstore/table.go", []string{
		"if r == nil || r.KEK != old.KEK ||", "if r == nil {\n\t\t\tt.plant(h.id, Record{KEK: with.KEK, Epoch: with.Epoch, Version: 1, WrappedDEK: with.WrappedDEK, Context: old.Context})\n\t\t\treturn true, nil\n\t\t}\n\t\tif r.KEK != old.KEK ||",
	}},
	{"rewrap overwrites a row that has changed", "internal/memstore/table.go", []string{
		"if r == nil || r.KEK != old.KEK || !bytes.Equal(r.WrappedDEK, old.WrappedDEK) ||", "if r == nil ||",
	}},
	{"rewrap leaves the row's epoch and version", "internal/memstore/table.go", []string{
		"r.KEK, r.Epoch, r.WrappedDEK = with.KEK, with.Epoch, bytes.Clone(with.WrappedDEK)", "r.KEK, r.WrappedDEK = with.KEK, bytes.Clone(with.WrappedDEK)",
		"r.Version++", "",
	}},
	{"disable before the registry", "rotation/retire.go", []string{
		"v, err := s.transition(ctx, \"retire\", id, func", "if err := s.Keys.Disable(ctx, r.OldKEK); err != nil {\n\t\treturn RetireOutput{}, unavailable(\"KMS DisableKey\", err)\n\t}\n\tv, err := s.transition(ctx, \"retire\", id, func",
	}},
	{"retire without the second scan", "rotation/retire.go", []string{
		"confirmed, err = s.confirm(ctx, r)", "confirmed.Done = true",
	}},
	{"retire before its turn", "rotation/retire.go", []string{
		"if !r.Phase.Reached(kek.Rewrapped) {", "if false {",
		"kek/view.go", "",
		"r, err := v.step(Rewrapped, KEKRetired)", "from := Rewrapped\n\tif v.Rotation != nil && v.Rotation.Phase == Drained {\n\t\tfrom = Drained\n\t}\n\tr, err := v.step(from, KEKRetired)",
	}},
	{"drain trusts the clock", "rotation/drain.go", []string{
		"if gone, err = s.Drainage.Revoke(ctx, l); err != nil {", "if gone = true; err != nil {",
	}},
	{"mint without the arbiter", "rotation/mint.go", []string{
		"if owner, err = s.Keys.Claim(ctx, r.ID, r.Attempt, made.ID); err != nil {", "if owner = made.ID; err != nil {",
	}},
	{"sweep of keys during a mint", "rotation/mint.go", []string{
		"if r.NewKEK == \"\" && !r.Phase.Final() {", "if false {",
	}},
	{"losers of a mint stay enabled", "rotation/mint.go", []string{
		"if slices.Contains(keep, k) {", "if slices.Contains(keep, k) || true {",
	}},
	{"audit record outside the transaction", "internal/memstore/store.go", []string{
		"func (s *Store) Apply(_ context.Context, c kek.Change, ev audit.Event) error {\n\treturn s.w.answer(", "func (s *Store) Apply(ctx context.Context, c kek.Change, ev audit.Event) error {\n\terr := s.w.answer(",
		"if err := s.append(ev); err != nil { // the one thing that can still fail\n\t\t\treturn s.head.Seq, fmt.Errorf(\"apply %s: %w\", c.Event, err)\n\t\t}", "",
		"return s.head.Seq, nil\n\t}, c, ev)\n}", "return s.head.Seq, nil\n\t}, c, ev)\n\tif err != nil {\n\t\treturn err\n\t}\n\treturn s.Record(ctx, ev)\n}",
	}},
	{"a step returns before its record is in the bucket", "rotation/steps.go", []string{
		"return v, s.publish(ctx)\n\t\t}\n\t\tif err != nil {", "return v, nil\n\t\t}\n\t\tif err != nil {",
	}},
	{"records are marked published before they are put", "rotation/steps.go", []string{
		"for _, e := range entries {\n", "if len(entries) > 0 {\n\t\t_ = s.Outbox.MarkPublished(ctx, entries[len(entries)-1].Record.Seq)\n\t}\n\tfor _, e := range entries {\n",
	}},
	{"PreSwitchFailure after the switch", "kek/view.go", []string{
		"case !r.Phase.PreSwitch():", "case r.Phase.Final():",
		"moves, err := v.retireNew(r, \"pre-switch failure\", now)", "moves, err := []KEKMove(nil), error(nil)\n\tif r.Phase.PreSwitch() {\n\t\tmoves, err = v.retireNew(r, \"pre-switch failure\", now)\n\t}",
	}},
	{"an emergency rolls back", "kek/view.go", []string{
		"if r.Mode == Emergency {\n\t\treturn Change{}, &IllegalTransition{What: \"emergency", "if false {\n\t\treturn Change{}, &IllegalTransition{What: \"emergency",
	}},
	{"the fence is skipped on insert", "internal/memstore/table.go", []string{
		"sealed || !opened {", "(sealed || !opened) && false {",
	}},
	{"an update ignores the row's epoch", "internal/memstore/table.go", []string{
		"was.Version != read || was.Epoch > r.Epoch {", "was.Version != read {",
		"r.Version++", "",
	}},
	{"a start ignores the lock", "kek/view.go", []string{
		"if v.Lock != \"\" && v.Lock != r.ID {", "if false {",
		"internal/memstore/store.go", "",
		"if s.lock != id && (c.Lock != kek.LockTake || s.lock != \"\") {", "if id == \"\" {",
	}},
	{"an emergency only rewraps", "rotation/rewrap.go", []string{
		"if r.Mode != kek.Emergency {\n\t\tvar err error", "if true {\n\t\tvar err error",
	}},
	{"unconditional writes of the registry", "internal/ddb/apply.go", []string{
		"func (s *Store) put(what string, i item, c condition) action {\n", "func (s *Store) put(what string, i item, c condition) action {\n\tc = condition{expr: \"attribute_exists(#pk) OR attribute_not_exists(#pk)\"}\n",
	}},
	{"the pointer is written by itself", "internal/ddb/apply.go", []string{
		"\tactions, err := s.changes(c)\n", "\tif c.Pointer != nil {\n\t\tin := &dynamodb.PutItemInput{TableName: &s.table, Item: encodePointer(c.Pointer.After)}\n\t\tif _, err := s.client.PutItem(ctx, in); err != nil {\n\t\t\treturn err\n\t\t}\n\t\tc.Pointer.Before = &c.Pointer.After\n\t}\n\tactions, err := s.changes(c)\n",
	}},
	{"outbox outside of the transaction", "internal/ddb/apply.go", []string{
		"\tif err := s.commit(ctx, actions, ev); err != nil {", "\tif _, err := s.transact(ctx, actions); err != nil {\n\t\treturn fmt.Errorf(\"apply %s: %w\", c.Event, err)\n\t}\n\tif err := s.commit(ctx, nil, ev); err != nil {",
	}},
	{"the lock is taken over", "internal/ddb/apply.go", []string{
		"\"attribute_not_exists(#pk) OR \" + ours.expr", "\"attribute_not_exists(#pk) OR attribute_exists(#pk) OR \" + ours.expr",
		"kek/view.go", "",
		"if v.Lock != \"\" && v.Lock != r.ID {", "if false {",
	}},
	{"rewrap upserts (DynamoDB)", "internal/ddb/source.go", []string{
		"cond := \"#kek = :oldkek AND #dek = :olddek\"", "cond := \"attribute_not_exists(#kek) OR #kek = :oldkek AND #dek = :olddek\"",
	}},
	{"rewrap overwrites a row that has changed (DynamoDB)", "internal/ddb/source.go", []string{
		"cond := \"#kek = :oldkek AND #dek = :olddek\"", "cond := \"attribute_exists(#kek) OR #kek = :oldkek AND #dek = :olddek\"",
	}},
	{"rewrap leaves the row's epoch and version (DynamoDB)", "internal/ddb/source.go", []string{
		"update := \"SET #kek = :kek, #dek = :dek, #epoch = :epoch, #version = if_not_exists(#version, :zero) + :one\"",
		"update := \"SET #kek = :kek, #dek = :dek, #epoch = if_not_exists(#epoch, :epoch), #version = if_not_exists(#version, :one) + :zero\"",
	}},
	{"rewrap looks, then writes", "internal/ddb/source.go", []string{
		"\treturn t.write(ctx, h.key, update, cond, names, vals)\n", "\tout, err := t.client.GetItem(ctx, &dynamodb.GetItemInput{TableName: &t.cfg.Table, Key: h.key, ConsistentRead: aws.Bool(true)})\n\tif err != nil {\n\t\treturn false, err\n\t}\n\tr := reader{item: out.Item}\n\tif r.str(t.cfg.KEKID) != string(old.KEK) || string(r.bytes(t.cfg.WrappedDEK)) != string(old.WrappedDEK) {\n\t\treturn false, nil\n\t}\n\treturn t.write(ctx, h.key, update, \"attribute_exists(#kek) OR \"+cond, names, vals)\n",
	}},
	{"an emergency's rewrap overwrites another payload", "internal/ddb/source.go", []string{
		"cond+\" AND #payload = :oldpayload\"", "cond+\" AND (#payload = :oldpayload OR attribute_exists(#payload))\"",
	}},
	{"a seal leaves the fence open", "internal/ddb/drainage.go", []string{
		"fenceSK(shard)), \"state\", fenceSealed)", "fenceSK(shard)), \"state\", fenceOpen)",
		"internal/ddb/apply.go", "",
		"if c.Sealed != \"\" {", "if c.Sealed != \"\" && i < 0 {",
	}},
	{"revoke takes a lease that was renewed", "internal/ddb/drainage.go", []string{
		"cond := \"#expires_at = :expires_at\"", "cond := \"#expires_at = :expires_at OR attribute_exists(#expires_at)\"",
	}},
	{"revoke looks, then deletes", "internal/ddb/drainage.go", []string{
		"\tcond := \"#expires_at = :expires_at\"\n", "\ti, err := getItem(ctx, s.client, s.table, leasePK(l.KEK), l.Holder)\n\tif r := (&reader{item: i}); err != nil || i == nil || r.num(\"expires_at\") != l.Expires.UnixMilli() {\n\t\treturn false, err\n\t}\n\tcond := \"#expires_at = :expires_at OR attribute_exists(#expires_at)\"\n",
		"_, err := s.client.DeleteItem(ctx, &dynamodb.DeleteItemInput{\n", "_, err = s.client.DeleteItem(ctx, &dynamodb.DeleteItemInput{\n",
	}},
	{"leases are listed without the last", "internal/ddb/drainage.go", []string{
		"for _, i := range items {\n\t\tl, err := decodeLease(i)", "for _, i := range items[:max(len(items), 1)-1] {\n\t\tl, err := decodeLease(i)",
	}},
	{"the fence is skipped on insert (envelope)", "envelope/table.go", []string{
		"in.TransactItems = append(in.TransactItems, fenceCheck(", "_ = append(in.TransactItems, fenceCheck(",
	}},
	{"an update ignores the row's epoch and version (envelope)", "envelope/table.go", []string{
		"cond += fmt.Sprintf(\"%s = %s\", version, e.value(numeric(old.version)))", "cond += fmt.Sprintf(\"attribute_exists(%s)\", version)",
		"cond += fmt.Sprintf(\" AND (attribute_not_exists(%s) OR %s <= %s)\", epoch, epoch, e.value(set[t.cfg.Epoch]))", "_ = epoch",
	}},
	{"an update ignores the row's version (envelope)", "envelope/table.go", []string{
		"cond += fmt.Sprintf(\"%s = %s\", version, e.value(numeric(old.version)))", "cond += fmt.Sprintf(\"attribute_exists(%s)\", version)",
	}},
	{"a refused writer gives up", "envelope/write.go", []string{
		"(!v.again && !v.fenced && !disabled)", "!v.again",
	}},
	{"a reader does not read again", "envelope/open.go", []string{
		"if !errors.Is(err, errSuspect) && !errors.Is(err, ErrKeyUnusable) {", "if plain != nil || err != nil {",
	}},
	{"a data key outlives its KEK", "envelope/keeper.go", []string{
		"\th.renewed = c.elapsed()\n", "\tif was := c.current.Load(); was != nil {\n\t\th.sealing = was.sealing\n\t}\n\th.renewed = c.elapsed()\n",
		"old.sealing.drop(true)", "_ = old.sealing",
	}},
	{"a lease is given back that is referred to", "envelope/keeper.go", []string{
		"if superseded && l.refs == 0 {", "if superseded {",
	}},
	{"leases are not renewed", "envelope/keeper.go", []string{
		"if l.refs == h.written && now-h.renewed < c.cfg.LeaseTTL/3 {", "if now > 0 {",
	}},
	{"a thawed process trusts a read that it slept over", "envelope/keeper.go", []string{
		"err != nil && h != nil && now-at < 2*c.cfg.PointerAge {", "err != nil && h != nil && now >= at {",
	}},
	{"drain before the switch", "rotation/drain.go", []string{
		"if r.Phase == kek.Switched {", "if !r.Phase.Reached(kek.Drained) {",
		"case v.Rotation == nil || v.Rotation.Phase != kek.Switched || v.Pointer == nil || v.Pointer.KEKID == r.OldKEK:", "case v.Rotation == nil:",
	}},
}
