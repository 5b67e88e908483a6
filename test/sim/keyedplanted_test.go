package sim

import "github.com/matter-ops/kms-rotation/test/plant"

// keyedBugs are those that only the world with keyed rows can find.
var keyedBugs = []plant.Bug{
	{Name: "the fence of records is not checked", File: "internal/keyrecord/keyrecord.go", With: []string{
		"	return check\n}",
		"	check.ConditionExpression, check.ExpressionAttributeNames, check.ExpressionAttributeValues = aws.String(\"attribute_exists(pk)\"), nil, nil\n	return check\n}",
	}},
	{Name: "a record is created after the seal, which leaves its fence open", File: "internal/ddb/drainage.go", With: []string{
		"for _, pk := range fences {", "for _, pk := range fences[:1] {",
		"internal/ddb/apply.go", "",
		"if c.Sealed != \"\" {", "if c.Sealed != \"\" && pk == pkFence {",
	}},
	{Name: "a record is rewrapped whatever it has become", File: "internal/keyrecord/keyrecord.go", With: []string{
		"\"#wrapped_dek = :olddek AND #kek_id = :oldkek\"", "\"attribute_exists(pk) AND (#wrapped_dek = :olddek OR #wrapped_dek <> :olddek OR #kek_id = :oldkek)\"",
	}},
	{Name: "a record is rewrapped before its copy is stored", File: "source/deks/source.go", With: []string{
		"	if err := t.putCopy(ctx, after); err != nil {\n\t\treturn false, err\n\t}\n\treturn t.update(ctx, keyrecord.RewrapUpdate(t.table, h.record, after))",
		"	done, err := t.update(ctx, keyrecord.RewrapUpdate(t.table, h.record, after))\n\tif err != nil || !done {\n\t\treturn done, err\n\t}\n\treturn true, t.putCopy(ctx, after)",
	}},
	{Name: "a record is removed while rows name it", File: "source/deks/source.go", With: []string{
		"	switch last := attr.Text(",
		"	for _, row := range page.Rows {\n\t\tif !req.Missing && !req.Whole && !req.Payload && row.Epoch > 1 {\n\t\t\titems := []types.TransactWriteItem{{Delete: &types.Delete{TableName: &t.table, Key: keyrecord.Key(row.ID)}}}\n" +
			"\t\t\t_, _ = t.client.TransactWriteItems(ctx, &dynamodb.TransactWriteItemsInput{TransactItems: items})\n\t\t}\n\t}\n\tswitch last := attr.Text(",
	}},
	{Name: "a record is put back past the fence", File: "source/deks/source.go", With: []string{
		"TransactWriteItemsInput{TransactItems: items})", "TransactWriteItemsInput{TransactItems: items[:1]})",
	}},
	{Name: "a row names a data key that was never stored", File: "envelope/keyed.go", With: []string{
		"	v, err := c.storeRecord(ctx, h, r)\n	return k, v, err", "	return k, refusal{}, nil",
	}},
	{Name: "a row names a data key whose record was refused", File: "envelope/keyed.go", With: []string{
		"	case reasons[1] == controltable.Condition:\n		return refusal{fenced: true}, what(err)", "	case reasons[1] == controltable.Condition:\n		return refusal{}, nil",
	}},
	{Name: "a data key is used past its rows", File: "envelope/keyed.go", With: []string{"k.used.uses < s.bounds.MaxUses && ", ""}},
	{Name: "an update brings a row back under an exposed data key", File: "envelope/table.go", With: []string{
		"		cond += fmt.Sprintf(\"%s <= %s\", epoch, e.addValue(set[t.cfg.Epoch]))", "		cond += fmt.Sprintf(\"%s <> %s\", epoch, e.addValue(attr.Num(0)))",
		"t.sealRow(ctx, h, at, row, &old)", "t.sealRow(ctx, h, at, row, &storedRow{})",
	}},
	{Name: "retire does not look for lost records", File: "rotation/retire.go", With: []string{"missing: true, ", ""}},
}
