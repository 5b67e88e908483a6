package load

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/kek"
)

// table is a table in memory. A defect is what it does wrong, from its hundredth
// call on.
type table struct {
	defect string

	mu    sync.Mutex
	calls int
	rows  map[string][]byte
	past  map[string][]byte // the value before the last
}

var errBroken = errors.New("broken")

func newTable(defect string) *table {
	return &table{defect: defect, rows: map[string][]byte{}, past: map[string][]byte{}}
}

func id(i envelope.Item) string { return i["id"].(*types.AttributeValueMemberS).Value }

// enter counts a call and reports whether the table misbehaves in it.
func (t *table) enter(defect string) bool {
	t.calls++
	return t.calls > 100 && t.defect == defect
}

func (t *table) set(k string, plain []byte) {
	t.past[k] = t.rows[k]
	t.rows[k] = plain
}

func (t *table) Insert(_ context.Context, i envelope.Item, plain []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.enter("insert fails"):
		return errBroken
	case t.rows[id(i)] != nil:
		return envelope.ErrExists
	}
	t.set(id(i), plain)
	return nil
}

func (t *table) Update(_ context.Context, i envelope.Item, change func(*envelope.Row) error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rows[id(i)] == nil {
		return envelope.ErrNotFound
	}
	row := envelope.Row{Plaintext: t.rows[id(i)]}
	if err := change(&row); err != nil {
		return err
	}
	if !t.enter("update is lost") {
		t.set(id(i), row.Plaintext)
	}
	return nil
}

func (t *table) Get(_ context.Context, i envelope.Item) (envelope.Row, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	plain := t.rows[id(i)]
	switch {
	case t.enter("read is stale"):
		plain = t.past[id(i)]
	case t.enter("rows are swapped"):
		for _, plain = range t.rows {
		}
	case t.enter("payload is cut") && plain != nil:
		plain = plain[:len(plain)-1]
	}
	if plain == nil {
		return envelope.Row{}, envelope.ErrNotFound
	}
	return envelope.Row{Plaintext: plain}, nil
}

func (t *table) GetLate(ctx context.Context, i envelope.Item, held func()) (envelope.Row, kek.ID, error) {
	row, err := t.Get(ctx, i)
	held()
	return row, "k", err
}

func (t *table) Delete(_ context.Context, i envelope.Item) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.enter("delete is lost") {
		t.past[id(i)] = t.rows[id(i)]
		delete(t.rows, id(i))
	}
	return nil
}

func run(t *testing.T, rows *table) Report {
	t.Helper()
	g, err := New(Config{
		Run: "r", Writers: 2, Updaters: 2, Deleters: 1, Readers: 4, Rows: 20, MinSize: 10, MaxSize: 300,
		Rate: 1000, Held: 20 * time.Millisecond, Now: time.Now,
	}, Target{Rows: rows, Name: "t", Item: func(n int) envelope.Item {
		return envelope.Item{"id": &types.AttributeValueMemberS{Value: fmt.Sprint(n)}}
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	g.Run(ctx)
	return g.Report()
}

// TestCleanTable: a table that is as it should be gives no alarm.
func TestCleanTable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rows := newTable("")
		r := run(t, rows)
		if !r.Clean() || len(r.Problems) > 0 {
			t.Errorf("%+v", r)
		}
		if r.Count < 2500 || r.PerSecond < 800 || r.PerSecond > 1001 {
			t.Errorf("%d operations, %.0f/s; want 1000/s for 3 s", r.Count, r.PerSecond)
		}
		for _, o := range r.Operations {
			if o.Count < 100 {
				t.Errorf("%d operations of kind %s", o.Count, o.Kind)
			}
		}
		if want := map[kek.ID]int{"k": 20}; !maps.Equal(r.Rows, want) {
			t.Errorf("rows by KEK %v, want %v", r.Rows, want)
		}
	})
}

// TestDefects: whatever a table does wrong is seen, and told from an error.
func TestDefects(t *testing.T) {
	for _, defect := range []string{
		"update is lost", "delete is lost", "read is stale", "rows are swapped", "payload is cut", "insert fails",
	} {
		t.Run(defect, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := run(t, newTable(defect))
				if r.Clean() || len(r.Problems) == 0 {
					t.Fatalf("not noticed: %+v", r)
				}
				if fails := defect == "insert fails"; fails != (r.WrongReads == 0) || fails != (r.Errors > 0) {
					t.Errorf("%d wrong reads, %d errors: %q", r.WrongReads, r.Errors, r.Problems)
				}
				t.Logf("%d wrong, %d errors, first: %s", r.WrongReads, r.Errors, r.Problems[0])
			})
		})
	}
}

// TestWindow: a read may see the last acknowledged state and any begun since, and
// nothing else.
func TestWindow(t *testing.T) {
	c := &cell{payload: payload{row: 7, low: 0, high: 9}}
	for range 2 {
		c.ack(c.begin(true)) // states 1, 2
	}
	c.ack(c.begin(false)) // 3
	floor := c.floor()
	c.begin(true) // 4, under way
	for state, ok := range map[int64]bool{1: false, 2: false, 3: true, 4: true, 5: false} {
		plain, err := c.payload.of(state), error(nil)
		if state == 3 {
			plain, err = nil, envelope.ErrNotFound
		}
		if got := c.judge(floor, plain, err); (got == nil) != ok || got != nil && !errors.Is(got, errWrong) {
			t.Errorf("state %d: %v", state, got)
		}
	}
	c.ack(4)
	if err := c.judge(c.floor(), nil, envelope.ErrNotFound); !errors.Is(err, errWrong) {
		t.Errorf("the row is gone: %v", err)
	}
}

func TestQuantiles(t *testing.T) {
	var c tally
	for n := range 1000 {
		c.add(time.Duration(n+1)*time.Millisecond, nil)
	}
	c.add(time.Hour*24, nil) // beyond the last bucket
	h := c.times.copy()
	for percent, want := range map[int64]time.Duration{50: 500 * time.Millisecond, 99: 990 * time.Millisecond} {
		if got := h.quantile(percent); got < want || got > want+want/16 {
			t.Errorf("p%d is %s, want about %s", percent, got, want)
		}
	}
	var none histogram
	if got := none.quantile(99); got != 0 {
		t.Errorf("p99 of nothing is %s", got)
	}
	for d := time.Microsecond; d < time.Hour; d += d/7 + 1 {
		if u := upper(bucket(d)); d >= u || u > d+d/16+time.Microsecond {
			t.Fatalf("%s falls in a bucket that ends at %s", d, u)
		}
	}
}

func TestConfig(t *testing.T) {
	_, err := New(Config{Rows: 0, MinSize: 5, MaxSize: 1, Rate: -1})
	for _, part := range []string{"Run", "0 rows", "worker", "writer", "5 to 1", "-1"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v does not name %q", err, part)
		}
	}
}
