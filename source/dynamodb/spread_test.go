package dynamodb

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/matter-ops/kms-rotation/source"
)

// sized is a table that says what it takes.
type sized struct {
	*oneItem
	mu                *sync.Mutex
	warm, provisioned int64
}

func (c sized) Scan(ctx context.Context, in *dynamodb.ScanInput, o ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.oneItem.Scan(ctx, in, o...)
}

func (c sized) DescribeTable(ctx context.Context, in *dynamodb.DescribeTableInput, o ...func(*dynamodb.Options)) (*dynamodb.DescribeTableOutput, error) {
	out, err := c.oneItem.DescribeTable(ctx, in, o...)
	if c.warm > 0 {
		out.Table.WarmThroughput = &types.TableWarmThroughputDescription{WriteUnitsPerSecond: &c.warm}
	}
	if c.provisioned >= 0 {
		out.Table.ProvisionedThroughput = &types.ProvisionedThroughputDescription{WriteCapacityUnits: &c.provisioned}
	}
	return out, err
}

// TestSpreadsOnlyPartitions: a scan is spread if its caller asks for that and the table takes
// more than one partition does.
func TestSpreadsOnlyPartitions(t *testing.T) {
	for _, c := range []struct {
		warm, provisioned int64
		spread            bool
	}{{0, -1, false}, {1000, -1, false}, {1001, -1, true}, {4000, 0, true}, {4000, 1000, false}, {4000, 1001, true}} {
		s, api, _ := backupSource(t, "")
		s.client = sized{api, &sync.Mutex{}, c.warm, c.provisioned}
		for _, asked := range []bool{false, true} {
			p, err := s.Scan(t.Context(), source.ScanRequest{Total: 1, Spread: asked})
			if err != nil || (p.Next != "") != (c.spread && asked) {
				t.Errorf("%+v, asked %v: %v, next %q", c, asked, err, p.Next)
			}
		}
	}
}

// placed is a table of rows side by side, as many in each part of a scan. Its scans fail after a while.
type placed struct {
	sized
	rows  int
	fails bool
	asked chan *dynamodb.ScanInput
}

func (p placed) Scan(_ context.Context, in *dynamodb.ScanInput, _ ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error) {
	p.asked <- in
	if p.fails && *in.Segment > 40 {
		return nil, errors.New("throttled")
	}
	of, n := int(*in.TotalSegments), p.rows
	first, end := int(*in.Segment)*n/of, (int(*in.Segment)+1)*n/of
	if in.ExclusiveStartKey != nil {
		if _, err := fmt.Sscan(in.ExclusiveStartKey["sk"].(*types.AttributeValueMemberN).Value, &first); err != nil {
			return nil, err //nolint:wrapcheck // of a test
		}
		first++
	}
	out := &dynamodb.ScanOutput{}
	for at := first; at < end; at++ {
		i := item{"id": &types.AttributeValueMemberS{Value: fmt.Sprint(at)}, "sk": &types.AttributeValueMemberN{Value: fmt.Sprint(at)}}
		for _, name := range []string{"key", "dek", "data", "kek_epoch", "version"} {
			i[name] = p.item[name]
		}
		if out.Items = append(out.Items, i); len(out.Items) == int(*in.Limit) {
			out.LastEvaluatedKey = item{"id": i["id"], "sk": i["sk"]}
			break
		}
	}
	return out, nil
}

func placedTable(t *testing.T, rows int) (*Table, *placed) {
	t.Helper()
	s, api, _ := backupSource(t, "")
	p := &placed{sized: sized{api, &sync.Mutex{}, 10_000, -1}, rows: rows, asked: make(chan *dynamodb.ScanInput, 10_000)}
	s.client = p
	return s, p
}

// TestSpreadIsEven: any few hundred rows of a spread scan, in their order, come from all partitions
// alike, and the segments of other workers do not change that.
func TestSpreadIsEven(t *testing.T) {
	const rows, partitions, segments = 640_000, 10, 16
	s, _ := placedTable(t, rows)
	for _, segment := range []int{0, 5, 15} {
		req := source.ScanRequest{Segment: segment, Total: segments, Spread: true}
		at := make([]int, partitions)
		for range 8 {
			p, err := s.Scan(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range []int{0, 1, 2, 3, 4, 5, 6, 7} {
				if number := numberOf(t, p.Rows[n]); number/(rows/8) != n {
					t.Errorf("segment %d: row %d of a page is number %d of %d", segment, n, number, rows)
				}
			}
			for _, r := range p.Rows {
				at[numberOf(t, r)*partitions/rows]++
			}
			req.Cursor = p.Next
		}
		for partition, n := range at {
			if n < 8*496/10*9/10 || n > 8*496/10*11/10 {
				t.Errorf("segment %d: %d rows of partition %d, %v in all", segment, n, partition, at)
			}
		}
	}
}

func numberOf(t *testing.T, r source.Row) (n int) {
	t.Helper()
	if _, err := fmt.Sscanf(r.ID, "id=%d", &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestSpreadParts: the parts of all segments are those of the whole table, each once, and a page
// asks for at most so many rows.
func TestSpreadParts(t *testing.T) {
	s, p := placedTable(t, 0)
	for segment := range 3 {
		for _, limit := range []int{0, 1, 7, 9, 1000} {
			req := source.ScanRequest{Segment: segment, Total: 3, Spread: true, Limit: limit}
			for {
				page, err := s.Scan(t.Context(), req)
				if err != nil {
					t.Fatal(err)
				}
				if req.Cursor = page.Next; req.Cursor == "" {
					break
				}
			}
		}
	}
	times := map[int32]int{}
	for range 3 * 5 * spreadParts {
		in := <-p.asked
		times[*in.Segment]++
		if *in.TotalSegments != 3*spreadParts || *in.Limit < 1 || *in.Limit > 125 {
			t.Errorf("%d parts, limit %d", *in.TotalSegments, *in.Limit)
		}
	}
	for part := range int32(3 * spreadParts) {
		if times[part] != 5 {
			t.Errorf("part %d was read %d times in five scans", part, times[part])
		}
	}
	if len(p.asked) > 0 {
		t.Error("more was read")
	}
}

// TestSpreadFails: a page of which one part cannot be read is none.
func TestSpreadFails(t *testing.T) {
	s, p := placedTable(t, 64)
	p.fails = true
	if page, err := s.Scan(t.Context(), source.ScanRequest{Total: 1, Spread: true}); err == nil || len(page.Rows) > 0 || page.Next != "" {
		t.Errorf("%+v, %v", page, err)
	}
}

// TestSpreadCursors: what is not a cursor of a spread scan is refused; a scan continues as it began.
func TestSpreadCursors(t *testing.T) {
	s, p := placedTable(t, 640)
	all := strings.Repeat(",", spreadParts-1)
	for _, c := range []string{
		"spread:", "spread:0", "spread:0:", "spread:x:" + all, "spread:-1:" + all, "spread:8:" + all, "spread:0:" + all + ",",
		"spread:0:" + strings.Repeat(".,", spreadParts-1) + ".", "spread:0:e30" + all,
	} {
		if _, err := s.Scan(t.Context(), source.ScanRequest{Total: 1, Cursor: c, Spread: true}); !errors.Is(err, errCursor) {
			t.Errorf("%q: %v", c, err)
		}
	}
	for len(p.asked) > 0 {
		<-p.asked
	}
	plain, err := s.Scan(t.Context(), source.ScanRequest{Total: 1, Limit: 5})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = s.Scan(t.Context(), source.ScanRequest{Total: 1, Cursor: plain.Next, Spread: true}); err != nil || len(p.asked) != 2 {
		t.Errorf("%v, %d scans", err, len(p.asked))
	}
	if _, err = s.Scan(t.Context(), source.ScanRequest{Total: 1, Cursor: "spread:7:" + all}); err != nil || len(p.asked) != 2+spreadAtOnce {
		t.Errorf("%v, %d scans", err, len(p.asked))
	}
	if last := aws.ToInt32((<-p.asked).TotalSegments); last != 1 {
		t.Errorf("of %d segments", last)
	}
}

// TestSpreadOfLongKeys: while the cursors of the parts that have begun are long, no other part
// begins, and each part is read in the end.
func TestSpreadOfLongKeys(t *testing.T) {
	c := spreadCursor{parts: make([]string, spreadParts)}
	long, longest, reads := strings.Repeat("k", 9000), 0, map[int]int{}
	for c.String() != "" {
		for _, part := range c.takeTurn(spreadAtOnce) {
			c.parts[part] = long
			if reads[part]++; reads[part] == 3 {
				c.parts[part] = partDone
			}
		}
		longest = max(longest, len(c.String()))
	}
	for part := range spreadParts {
		if reads[part] != 3 {
			t.Errorf("part %d was read %d times", part, reads[part])
		}
	}
	if longest > spreadLength+spreadAtOnce*len(long)+spreadParts*2 {
		t.Errorf("the cursor was %d bytes long", longest)
	}
}
