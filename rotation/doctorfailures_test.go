package rotation_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/internal/advice"
	"github.com/matter-ops/kms-rotation/internal/ddb"
	"github.com/matter-ops/kms-rotation/rotation/doctor"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// hookedTable is a control table whose calls can fail as the world's do.
type hookedTable struct {
	*ddb.Store
	hook memstore.Hook
}

func (h *hookedTable) call(op string) error {
	if h.hook == nil {
		return nil
	}
	_, err := h.hook(op)
	return err
}

func (h *hookedTable) Examine(ctx context.Context) ([]doctor.Item, error) {
	if err := h.call("Items.Examine"); err != nil {
		return nil, err
	}
	return h.Store.Examine(ctx)
}

func (h *hookedTable) Repair(ctx context.Context, changes []doctor.ItemChange, ev audit.Event) error {
	if err := h.call("Items.Repair"); err != nil {
		return err
	}
	return h.Store.Repair(ctx, changes, ev)
}

func (h *hookedTable) Head(ctx context.Context) (audit.Line, audit.Head, error) {
	at, head, err := h.Store.Head(ctx)
	if failed := h.call("Outbox.Head"); failed != nil {
		return at, audit.Head{}, failed
	}
	return at, head, err
}

func (h *hookedTable) Unpublished(ctx context.Context) ([]audit.Entry, audit.Line, error) {
	if err := h.call("Outbox.Unpublished"); err != nil {
		return nil, audit.Line{}, err
	}
	return h.Store.Unpublished(ctx)
}

func (c *clinic) hookAll(h memstore.Hook) {
	c.Doctor.Items.(*hookedTable).hook = h
	c.Anchor.Signer.(*hooked).hook = &h
	c.world.SetHook(func(op string, args ...any) (bool, error) {
		switch op { // they have no order
		case "Vault.Get", "KMS.Describe", "KMS.Tagged":
			op = fmt.Sprint(op, " ", args[0])
		}
		return h(op, args...)
	})
}

// calledFor is a call and what it is about.
var calledFor = regexp.MustCompile(`((?:Vault|KMS)\.[A-Za-z]+) [^:]+`)

// TestEveryFailureOfDoctorIsTold is TestEveryFailureIsTold of doctor, of a control table
// that was set back and of one that has lost an item.
func TestEveryFailureOfDoctorIsTold(t *testing.T) {
	var text strings.Builder
	for _, p := range []struct {
		name string
		harm func(c *clinic)
	}{
		{"set back", func(c *clinic) { c.set(patientAt(t, atStart).db.items()) }},
		{"without a lock", func(c *clinic) { c.drop("LOCK") }},
	} {
		for _, step := range []string{"doctor", "repair"} {
			fmt.Fprintf(&text, "%s, %s\n", p.name, step)
			for _, line := range failing(t, func() *clinic {
				c := patientAt(t, atMint).clone(t)
				p.harm(c)
				table := &hookedTable{Store: c.table}
				c.Doctor.Items, c.Journal.Outbox = table, table
				c.Anchor.Signer = &hooked{Signer: c.key}
				return c
			}, (*clinic).hookAll, func(c *clinic) (any, error) {
				look := c.Doctor.ExamineTable
				if step == "repair" {
					look = c.Doctor.RepairTable
				}
				d, err := look(t.Context())
				told := []string{fmt.Sprintf("%d found, %d repaired, set back: %t, %d notes", len(d.Findings), len(d.Repaired), d.SetBack != "", len(d.Notes))}
				if err != nil {
					return nil, errors.New(told[0] + "; " + calledFor.ReplaceAllString(advice.Explain(err), "$1"))
				}
				return told, nil
			}) {
				fmt.Fprintf(&text, "  %s\n", line)
			}
		}
	}
	wantGolden(t, "doctor-failures.golden", text.String())
}
