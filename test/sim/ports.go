package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
)

// scheduledSource scans one row a page: rows of one page are worked on at once, and a
// schedule must not depend on goroutines.
type scheduledSource struct {
	rows
	r     *run
	known bool // its rows are known ciphers
}

// Traits implements [source.Driver].
func (s *scheduledSource) Traits() source.Traits {
	t := s.rows.Traits()
	t.KnownPlaintexts = s.known
	return t
}

// Scan implements [source.Driver]. A short page is what a filter or the size
// limit of a page makes of one: no row, and a cursor.
func (s *scheduledSource) Scan(ctx context.Context, req source.ScanRequest) (source.Page, error) {
	req.Limit = 1
	p, err := s.rows.Scan(ctx, req)
	for i := range p.Rows {
		if !strings.Contains(p.Rows[i].ID, "known-") { // what the others open to is not known
			p.Rows[i].PlainSHA = ""
		}
	}
	if err == nil && s.r.empty {
		s.r.empty = false
		if req.Cursor == "" {
			req.Cursor = s.r.start
		}
		return source.Page{Next: req.Cursor}, nil
	}
	return p, err
}

// keys is KMS as far as it is only eventually consistent.
type keys struct {
	keyService
	r *run
}

// hosts is how many answer for KMS. The first learns of a change at once, the last when it
// is as old as the lag, the others in between.
const hosts = 4

// told reports whether the host that answers this call has learned of a change. Which
// host that is looks like chance and replays: a refusal may follow a success.
func (r *run) told(at time.Time) bool {
	if r.oneHost {
		return r.now.Sub(at) >= lag
	}
	r.asked++
	host := r.asked * 2654435761 >> 16 % hosts
	return r.now.Sub(at) >= lag*time.Duration(host)/(hosts-1)
}

// young fails at a host that does not know a key or its tag yet; dead fails at one that
// knows that a key is disabled, which others do not know yet.
func (k *keys) young(id kek.ID) error {
	if at, ok := k.r.made[id]; ok && k.r.lagNew && k.r.now.Sub(at) < lag && !k.r.told(at) {
		return fmt.Errorf("key %s is not known here yet: %w", id, journal.ErrDenied)
	}
	return nil
}

func (k *keys) dead(id kek.ID) error {
	if until, ok := k.r.dying[id]; ok && k.r.told(until.Add(-lag)) {
		return fmt.Errorf("key %s: %w", id, journal.ErrKeyDisabled)
	}
	return k.young(id)
}

// Create implements [keyring.Admin]. It notes when the key was made, also if the
// answer is lost.
func (k *keys) Create(ctx context.Context, rotationID string, attempt int, label string, old keyring.Key) (keyring.Key, error) {
	key, err := k.keyService.Create(ctx, rotationID, attempt, label, old)
	k.r.age(rotationID)
	return key, err
}

// Describe implements [keyring.Admin].
func (k *keys) Describe(ctx context.Context, id kek.ID) (keyring.Key, error) {
	if err := k.young(id); err != nil {
		return keyring.Key{}, err
	}
	key, err := k.keyService.Describe(ctx, id)
	if errors.Is(k.dead(id), journal.ErrKeyDisabled) {
		key.Enabled = false
	}
	return key, err
}

// Disable implements [keyring.Admin]. While it lags the key goes on working.
func (k *keys) Disable(ctx context.Context, id kek.ID) error {
	if err := k.young(id); err != nil {
		return err
	}
	if k.r.lagDisable {
		if _, ok := k.r.dying[id]; !ok {
			k.r.dying[id] = k.r.now.Add(lag)
		}
		return nil
	}
	return k.keyService.Disable(ctx, id)
}

// Tagged implements [keyring.Admin].
func (k *keys) Tagged(ctx context.Context, rotationID string) ([]kek.ID, error) {
	ids, err := k.keyService.Tagged(ctx, rotationID)
	if k.r.lagTags {
		ids = slices.DeleteFunc(ids, func(id kek.ID) bool { return k.r.now.Sub(k.r.made[id]) < lag })
	}
	return ids, err
}

// GenerateDataKey implements [keyring.Wrapper].
func (k *keys) GenerateDataKey(ctx context.Context, id kek.ID, encctx map[string]string) (dek, wrapped []byte, err error) {
	if err := k.dead(id); err != nil {
		return nil, nil, err
	}
	return k.keyService.GenerateDataKey(ctx, id, encctx)
}

// Decrypt implements [keyring.Wrapper].
func (k *keys) Decrypt(ctx context.Context, id kek.ID, wrapped []byte, encctx map[string]string) ([]byte, error) {
	if err := k.dead(id); err != nil {
		return nil, err
	}
	return k.keyService.Decrypt(ctx, id, wrapped, encctx)
}

// ReEncrypt implements [keyring.Wrapper].
func (k *keys) ReEncrypt(ctx context.Context, from, to kek.ID, wrapped []byte, encctx map[string]string) ([]byte, error) {
	for _, id := range []kek.ID{from, to} {
		if err := k.dead(id); err != nil {
			return nil, err
		}
	}
	return k.keyService.ReEncrypt(ctx, from, to, wrapped, encctx)
}

// operatorCall is something a person does by mistake, or too early, or too late.
type operatorCall struct {
	name string
	do   func(context.Context, *rotation.Steps) error
	rows bool // it is about which rows there are, not a step
}

var operatorCalls = operatorList()

// sourceCalls are those of the operator's calls that are about which rows there are.
var sourceCalls = func() (out []int) {
	for i, c := range operatorCalls {
		if c.rows {
			out = append(out, i)
		}
	}
	return out
}()

func operatorList() []operatorCall {
	out := sourceCallList()
	add := func(name string, do func(context.Context, *rotation.Steps) error) {
		out = append(out, operatorCall{name: name, do: do})
	}
	for _, id := range []string{mainID, rivalID} {
		in := rotation.StepInput{RotationID: id}
		add("census "+id, func(c context.Context, s *rotation.Steps) error {
			_, err := s.Verify(c, rotation.VerifyInput{RotationID: id, Census: true})
			return err
		})
		add("rehearse "+id, func(c context.Context, s *rotation.Steps) error {
			_, err := s.Rewrap(c, rotation.RewrapInput{RotationID: id, Rehearse: true})
			return err
		})
		add("mint "+id, func(c context.Context, s *rotation.Steps) error { _, err := s.Mint(c, in); return err })
		add("dualunwrap "+id, func(c context.Context, s *rotation.Steps) error { _, err := s.DualUnwrap(c, in); return err })
		add("switch "+id, func(c context.Context, s *rotation.Steps) error { _, err := s.Switch(c, in); return err })
		add("drain "+id, func(c context.Context, s *rotation.Steps) error { _, err := s.Drain(c, in); return err })
		for name, in := range map[string]rotation.RewrapInput{
			"rewrap ": {RotationID: id, Source: "rows"}, "rewrap complete ": {RotationID: id, Complete: true},
		} {
			add(name+id, func(c context.Context, s *rotation.Steps) error { _, err := s.Rewrap(c, in); return err })
		}
		for _, action := range []string{rotation.ActionRetire, rotation.ActionPreSwitchFailure, rotation.ActionRemint, rotation.ActionAbandon} {
			in := rotation.RetireInput{RotationID: id, Action: action, FailedAttempt: 1, ExecutionARN: "arn:" + id, Error: "operator"}
			add(action+" "+id, func(c context.Context, s *rotation.Steps) error { _, err := s.Retire(c, in); return err })
		}
		add("verify "+id, func(c context.Context, s *rotation.Steps) error {
			_, err := s.Verify(c, rotation.VerifyInput{RotationID: id})
			return err
		})
		for _, input := range []rotation.ExecutionInput{{}, {Resume: id}} {
			name := "start "
			if input.Resume != "" {
				name = "resume "
			}
			in := rotation.PreflightInput{ExecutionARN: "arn:person", ExecutionName: id, Input: input}
			add(name+id, func(c context.Context, s *rotation.Steps) error { _, err := s.Preflight(c, in); return err })
		}
	}
	slices.SortFunc(out, func(a, b operatorCall) int { return strings.Compare(a.name, b.name) })
	return out
}

func (r *run) operator(n int) {
	c := operatorCalls[n]
	if c.rows {
		_ = r.command(c.name, c.do)
		return
	}
	_, _, _ = r.invoke(nil, "operator: "+c.name, func(ctx context.Context) (answer, error) { return answer{}, c.do(ctx, r.steps) })
}

// age notes since when the keys of a rotation have been there.
func (r *run) age(rotationID string) {
	r.alone(func() {
		ids, err := r.kms.Tagged(ctx, rotationID)
		r.must(err)
		for _, id := range ids {
			if _, ok := r.made[id]; !ok {
				r.made[id] = r.now
			}
		}
	})
}
