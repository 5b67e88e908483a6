package ddb

import (
	"context"
	"fmt"
	"slices"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
)

// The items of what preflight and the switch ask for beyond the state of a rotation.
const (
	pkAnnouncement = "ANNOUNCEMENT#"
	pkDrill        = "DRILL#"
	pkApproval     = "APPROVAL#"
	pkHealth       = "HEALTH#"
)

var (
	_ rotation.Announcements = (*Store)(nil)
	_ rotation.Drills        = (*Store)(nil)
	_ rotation.Approvals     = (*Store)(nil)
	_ rotation.HealthLog     = (*Store)(nil)
)

// LoadAnnouncement implements [rotation.Announcements].
func (s *Store) LoadAnnouncement(ctx context.Context, label string) (rotation.Announcement, error) {
	i, err := getItem(ctx, s.client, s.table, pkAnnouncement+label, noSK)
	if err != nil {
		return rotation.Announcement{}, err
	}
	return decodeAnnouncement(i, label)
}

func decodeAnnouncement(i item, label string) (rotation.Announcement, error) {
	r, a := attr.Reader{Item: i}, rotation.Announcement{Label: label}
	a.Rev = r.Num("rev")
	a.From = r.Time("from")
	a.To = r.Time("to")
	a.At = r.Time("announced_at")
	a.Actor, a.Told = r.Str("actor"), r.Strs("told")
	return a, damagedIf(r.Err, pkAnnouncement+label)
}

// SaveAnnouncement implements [rotation.Announcements].
func (s *Store) SaveAnnouncement(ctx context.Context, a rotation.Announcement, ev audit.Event) error {
	i := attr.Set(item{}, "from", a.From, "to", a.To, "announced_at", a.At, "actor", a.Actor)
	if len(a.Told) > 0 {
		told := &types.AttributeValueMemberL{}
		for _, name := range a.Told {
			told.Value = append(told.Value, attr.Str(name))
		}
		i["told"] = told
	}
	return s.saveRev(ctx, pkAnnouncement+a.Label, i, a.Rev, ev)
}

// LoadDrill implements [rotation.Drills].
func (s *Store) LoadDrill(ctx context.Context, name string) (rotation.Drill, error) {
	i, err := getItem(ctx, s.client, s.table, pkDrill+name, noSK)
	if err != nil {
		return rotation.Drill{}, err
	}
	return decodeDrill(i, name)
}

func decodeDrill(i item, name string) (rotation.Drill, error) {
	r, d := attr.Reader{Item: i}, rotation.Drill{Name: name}
	d.Rev = r.Num("rev")
	d.PassedAt = r.Time("passed_at")
	d.Rotation = r.Str("rotation_id")
	d.Pointer, d.Retired = kek.ID(r.Str("pointer_kek_id")), kek.ID(r.Str("retired_kek_id"))
	d.Error, d.Actor = r.Str("error"), r.Str("actor")
	return d, damagedIf(r.Err, pkDrill+name)
}

// SaveDrill implements [rotation.Drills].
func (s *Store) SaveDrill(ctx context.Context, d rotation.Drill, ev audit.Event) error {
	return s.saveRev(ctx, pkDrill+d.Name, attr.Set(item{}, "passed_at", d.PassedAt, "rotation_id", d.Rotation,
		"pointer_kek_id", string(d.Pointer), "retired_kek_id", string(d.Retired), "error", d.Error, "actor", d.Actor), d.Rev, ev)
}

// LoadApproval implements [rotation.Approvals].
func (s *Store) LoadApproval(ctx context.Context, rotationID string) (rotation.Approval, error) {
	i, err := getItem(ctx, s.client, s.table, pkApproval+rotationID, noSK)
	if err != nil {
		return rotation.Approval{}, err
	}
	return decodeApproval(i, rotationID)
}

func decodeApproval(i item, rotationID string) (rotation.Approval, error) {
	r, a := attr.Reader{Item: i}, rotation.Approval{Rotation: rotationID}
	a.Rev = r.Num("rev")
	a.Plan = r.Str("plan")
	a.State = rotation.ApprovalState(r.Str("state"))
	a.Token = r.Str("task_token")
	a.Requester = r.Str("requested_by")
	a.Asked = r.Time("asked_at")
	a.Expires = r.Time("expires_at")
	a.By = r.Str("answered_by")
	a.At = r.Time("answered_at")
	a.Reason = r.Str("reason")
	return a, damagedIf(r.Err, pkApproval+rotationID)
}

// SaveApproval implements [rotation.Approvals].
func (s *Store) SaveApproval(ctx context.Context, a rotation.Approval, ev audit.Event) error {
	return s.saveRev(ctx, pkApproval+a.Rotation, attr.Set(item{}, "plan", a.Plan, "state", string(a.State), "task_token", a.Token,
		"requested_by", a.Requester, "asked_at", a.Asked, "expires_at", a.Expires,
		"answered_by", a.By, "answered_at", a.At, "reason", a.Reason), a.Rev, ev)
}

// saveRev puts an item with revision rev+1 if the stored one has revision rev, 0 being
// none, and appends the record in the same transaction.
func (s *Store) saveRev(ctx context.Context, pk string, i item, rev int64, ev audit.Event) error {
	i["pk"] = attr.Str(pk)
	i["sk"] = attr.Str(noSK)
	i["rev"] = attr.Num(rev + 1)
	if err := s.commit(ctx, []action{s.put(pk, i, atRev(rev))}, ev, nil); err != nil {
		return fmt.Errorf("save %s at revision %d: %w", pk, rev, err)
	}
	return nil
}

// CountHealth implements [rotation.HealthLog].
func (s *Store) CountHealth(ctx context.Context, day string, green bool) (rotation.HealthDay, error) {
	expr, counter := "ADD #green :n", "green"
	if !green {
		expr, counter = "ADD #red :n", "red"
	}
	names, params := controltable.Expression(expr, values{"n": attr.Num(1)})
	out, err := s.client.UpdateItem(ctx, &dynamodb.UpdateItemInput{
		TableName: &s.table, Key: controltable.Key(pkHealth+day, noSK), UpdateExpression: &expr,
		ExpressionAttributeNames: names, ExpressionAttributeValues: params, ReturnValues: types.ReturnValueAllNew,
	})
	if err != nil {
		return rotation.HealthDay{}, wrap("UpdateItem "+pkHealth+day+" "+counter, err)
	}
	return decodeHealth(day, out.Attributes)
}

// ListHealth implements [rotation.HealthLog].
func (s *Store) ListHealth(ctx context.Context, days []string) ([]rotation.HealthDay, error) {
	var out []rotation.HealthDay
	for _, day := range slices.Compact(slices.Sorted(slices.Values(days))) {
		i, err := getItem(ctx, s.client, s.table, pkHealth+day, noSK)
		if err != nil {
			return nil, err
		}
		if i == nil {
			continue
		}
		d, err := decodeHealth(day, i)
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

func decodeHealth(day string, i item) (rotation.HealthDay, error) {
	r := attr.Reader{Item: i}
	d := rotation.HealthDay{Day: day, Green: r.Num("green"), Red: r.Num("red")}
	return d, damagedIf(r.Err, pkHealth+day)
}
