package sample

import (
	"context"
	"errors"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/source"
	keytable "github.com/matter-ops/kms-rotation/source/deks"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/load"
	"github.com/matter-ops/kms-rotation/test/rowcheck"
)

// Notes is the name of the table of keyed rows, and Keys that of the key table, as sources. No
// row of it is seeded: applications write them.
const (
	Notes = "notes"
	Keys  = "keys"
)

// notes describes the table of keyed rows.
func (s *Set) notes() dynamosource.Config {
	return dynamosource.Config{
		Name: Notes, Table: s.Stack + "-" + Notes, Envelope: "keyed", Ciphertext: "ciphertext", Version: "version", Context: map[string]string{"table": Notes},
	}
}

// AddKeyed creates the table of keyed rows, and registers it with the key table of the stack.
func (l *Local) AddKeyed(ctx context.Context) error {
	cfg := l.Set.notes()
	key := attribute("note", types.ScalarAttributeTypeS)
	_, err := l.Set.Dynamo.CreateTable(ctx, &dynamodb.CreateTableInput{
		TableName: &cfg.Table, BillingMode: types.BillingModePayPerRequest, AttributeDefinitions: []types.AttributeDefinition{key},
		KeySchema: []types.KeySchemaElement{{AttributeName: key.AttributeName, KeyType: types.KeyTypeHash}},
	})
	if err != nil {
		return fmt.Errorf("create table %s: %w", cfg.Table, err)
	}
	def := keytable.Config{Table: l.Outputs["KeyTableName"]}.Source()
	def.Name = Keys
	opened, err := l.Deployment.Steps.OpenSource(def)
	if err != nil {
		return err
	}
	records, ok := opened.(source.Keeper)
	if !ok {
		return errors.New("the key table's driver keeps no records")
	}
	if _, err := l.Deployment.Steps.AddSource(ctx, def); err != nil {
		return err
	}
	if _, err := l.Deployment.Steps.AddSource(ctx, cfg.Source()); err != nil {
		return err
	}
	l.Set.Records = records
	return nil
}

// Site is the stack as its applications know it.
func (l *Local) Site(ctx context.Context) (load.Site, error) {
	sources, err := l.Deployment.Sources(ctx)
	c := l.Deployment.Config
	return load.Site{AWS: l.ApplicationConfig(), ControlTable: c.ControlTable, AuditBucket: c.AuditBucket, Sources: sources}, err
}

// resolve returns a row with what opens it, a keyed one with the record of its data key.
func (s *Set) resolve(ctx context.Context, row source.Row) (source.Row, error) {
	if row.DEKID == "" || row.Defect != "" {
		return row, nil
	}
	return rowcheck.Resolve(ctx, s.Records, row)
}
