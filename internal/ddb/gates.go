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
	"github.com/matter-ops/kms-rotation/rotation/gates"
)

// The items that the gates of a rotation read: what preflight and the switch ask for beyond
// the state of the rotation itself.
//
//	ANNOUNCEMENT#<label>   rev N, from S, to S (the window), announced_at S, actor S,
//	                       told L of S (the announcers that have accepted it)
//	DRILL#<name>           rev N, passed_at S, rotation_id S, pointer_kek_id S,
//	                       retired_kek_id S, error S (what failed, as it should), actor S
//	APPROVAL#<rotation>    rev N, plan S (hash of the plan), state S, task_token S (of Step
//	                       Functions), requested_by S, asked_at S, expires_at S,
//	                       answered_by S, answered_at S, reason S
//	PAUSE#<rotation>       rev N, state S (paused or continued), by S, at S, reason S
//	HEALTH#<day, UTC>      green N, red N: canaries of that day that opened and that did not
//
// rev grows with every save, and a save is conditional on it. The counters of HEALTH# have
// no revision: they are only added to, and a canary that is counted twice does no harm.
const (
	pkAnnouncement = "ANNOUNCEMENT#"
	pkDrill        = "DRILL#"
	pkApproval     = "APPROVAL#"
	pkHealth       = "HEALTH#"
	pkPause        = "PAUSE#"
)

var (
	_ gates.Announcements = (*Store)(nil)
	_ gates.Drills        = (*Store)(nil)
	_ gates.Approvals     = (*Store)(nil)
	_ gates.HealthLog     = (*Store)(nil)
	_ gates.Pauses        = (*Store)(nil)
)

// LoadAnnouncement implements [gates.Announcements].
func (s *Store) LoadAnnouncement(ctx context.Context, label string) (gates.Announcement, error) {
	i, err := getItem(ctx, s.client, s.table, pkAnnouncement+label, noSK)
	if err != nil {
		return gates.Announcement{}, err
	}
	return decodeAnnouncement(i, label)
}

func decodeAnnouncement(i item, label string) (gates.Announcement, error) {
	r, a := attr.Reader{Item: i}, gates.Announcement{Label: label}
	a.Rev = r.Num("rev")
	a.From = r.Time("from")
	a.To = r.Time("to")
	a.At = r.Time("announced_at")
	a.Actor, a.Told = r.Str("actor"), r.Strs("told")
	return a, damagedIf(r.Err, pkAnnouncement+label)
}

// SaveAnnouncement implements [gates.Announcements].
func (s *Store) SaveAnnouncement(ctx context.Context, a gates.Announcement, ev audit.Event) error {
	i := attr.Set(item{}, "from", a.From, "to", a.To, "announced_at", a.At, "actor", a.Actor)
	if len(a.Told) > 0 {
		told := &types.AttributeValueMemberL{}
		for _, name := range a.Told {
			told.Value = append(told.Value, attr.Str(name))
		}
		i["told"] = told
	}
	return s.saveWithRecord(ctx, pkAnnouncement+a.Label, i, a.Rev, ev)
}

// LoadDrill implements [gates.Drills].
func (s *Store) LoadDrill(ctx context.Context, name string) (gates.Drill, error) {
	i, err := getItem(ctx, s.client, s.table, pkDrill+name, noSK)
	if err != nil {
		return gates.Drill{}, err
	}
	return decodeDrill(i, name)
}

func decodeDrill(i item, name string) (gates.Drill, error) {
	r, d := attr.Reader{Item: i}, gates.Drill{Name: name}
	d.Rev = r.Num("rev")
	d.PassedAt = r.Time("passed_at")
	d.Rotation = r.Str("rotation_id")
	d.Pointer, d.Retired = kek.ID(r.Str("pointer_kek_id")), kek.ID(r.Str("retired_kek_id"))
	d.Error, d.Actor = r.Str("error"), r.Str("actor")
	return d, damagedIf(r.Err, pkDrill+name)
}

// SaveDrill implements [gates.Drills].
func (s *Store) SaveDrill(ctx context.Context, d gates.Drill, ev audit.Event) error {
	return s.saveWithRecord(ctx, pkDrill+d.Name, attr.Set(item{}, "passed_at", d.PassedAt, "rotation_id", d.Rotation,
		"pointer_kek_id", string(d.Pointer), "retired_kek_id", string(d.Retired), "error", d.Error, "actor", d.Actor), d.Rev, ev)
}

// LoadApproval implements [gates.Approvals].
func (s *Store) LoadApproval(ctx context.Context, rotationID string) (gates.Approval, error) {
	i, err := getItem(ctx, s.client, s.table, pkApproval+rotationID, noSK)
	if err != nil {
		return gates.Approval{}, err
	}
	return decodeApproval(i, rotationID)
}

func decodeApproval(i item, rotationID string) (gates.Approval, error) {
	r, a := attr.Reader{Item: i}, gates.Approval{Rotation: rotationID}
	a.Rev = r.Num("rev")
	a.Plan = r.Str("plan")
	a.State = gates.ApprovalState(r.Str("state"))
	a.Token = r.Str("task_token")
	a.Requester = r.Str("requested_by")
	a.Asked = r.Time("asked_at")
	a.Expires = r.Time("expires_at")
	a.By = r.Str("answered_by")
	a.At = r.Time("answered_at")
	a.Reason = r.Str("reason")
	return a, damagedIf(r.Err, pkApproval+rotationID)
}

// SaveApproval implements [gates.Approvals].
func (s *Store) SaveApproval(ctx context.Context, a gates.Approval, ev audit.Event) error {
	return s.saveWithRecord(ctx, pkApproval+a.Rotation, attr.Set(item{}, "plan", a.Plan, "state", string(a.State), "task_token", a.Token,
		"requested_by", a.Requester, "asked_at", a.Asked, "expires_at", a.Expires,
		"answered_by", a.By, "answered_at", a.At, "reason", a.Reason), a.Rev, ev)
}

// LoadPause implements [gates.Pauses].
func (s *Store) LoadPause(ctx context.Context, rotationID string) (gates.Pause, error) {
	i, err := getItem(ctx, s.client, s.table, pkPause+rotationID, noSK)
	if err != nil {
		return gates.Pause{}, err
	}
	return decodePause(i, rotationID)
}

func decodePause(i item, rotationID string) (gates.Pause, error) {
	r, p := attr.Reader{Item: i}, gates.Pause{Rotation: rotationID}
	p.Rev = r.Num("rev")
	p.State = gates.PauseState(r.Str("state"))
	p.By = r.Str("by")
	p.At = r.Time("at")
	p.Reason = r.Str("reason")
	return p, damagedIf(r.Err, pkPause+rotationID)
}

// SavePause implements [gates.Pauses].
func (s *Store) SavePause(ctx context.Context, p gates.Pause, ev audit.Event) error {
	return s.saveWithRecord(ctx, pkPause+p.Rotation, attr.Set(item{}, "state", string(p.State), "by", p.By, "at", p.At, "reason", p.Reason), p.Rev, ev)
}

// saveWithRecord puts an item with revision rev+1 if the stored one has revision rev, where
// 0 means that there must be none, and appends the record in the same transaction: neither
// an announcement nor an approval exists without its record in the audit chain.
func (s *Store) saveWithRecord(ctx context.Context, pk string, i item, rev int64, ev audit.Event) error {
	i["pk"] = attr.Str(pk)
	i["sk"] = attr.Str(noSK)
	i["rev"] = attr.Num(rev + 1)
	if err := s.commitWithRecord(ctx, []action{s.putItem(pk, i, ifRevision(rev))}, ev, nil); err != nil {
		return fmt.Errorf("save %s at revision %d: %w", pk, rev, err)
	}
	return nil
}

// CountHealth implements [gates.HealthLog].
func (s *Store) CountHealth(ctx context.Context, day string, green bool) (gates.HealthDay, error) {
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
		return gates.HealthDay{}, wrapError("UpdateItem "+pkHealth+day+" "+counter, err)
	}
	return decodeHealth(day, out.Attributes)
}

// ListHealth implements [gates.HealthLog].
func (s *Store) ListHealth(ctx context.Context, days []string) ([]gates.HealthDay, error) {
	var out []gates.HealthDay
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

func decodeHealth(day string, i item) (gates.HealthDay, error) {
	r := attr.Reader{Item: i}
	d := gates.HealthDay{Day: day, Green: r.Num("green"), Red: r.Num("red")}
	return d, damagedIf(r.Err, pkHealth+day)
}
