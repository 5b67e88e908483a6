package limits

import (
	"sync"
)

// Limits of DynamoDB (developer guide, "Burst and adaptive capacity", "Quotas in Amazon
// DynamoDB", "Read and write capacity units").
const (
	PartitionWrites = 1000   // write units a second of one partition
	PartitionReads  = 3000   // read units a second of one partition
	BurstSeconds    = 300    // unused capacity that a provisioned table keeps
	TableUnits      = 40_000 // default quota of an on-demand table, read and write units a second each
	WarmWrites      = 4000   // write units that a new on-demand table takes at once
	WarmReads       = 12_000 // read units that a new on-demand table takes at once
)

// WriteUnits is what a write of an item costs: one unit for each KB begun, of the larger of
// the item before and after.
func WriteUnits(bytes int) float64 { return float64(max(1, (bytes+1023)/1024)) }

// ReadUnits is what a strongly consistent read costs: one unit for each 4 KB begun. A scan
// counts the items of a page together.
func ReadUnits(bytes int) float64 { return float64(max(1, (bytes+4095)/4096)) }

// Table is a DynamoDB table: partitions over equal ranges of the hashed key, and the
// throughput of the whole table. A partition never takes more than its limit. Adaptive
// capacity lets each have up to that as long as the whole table is within its throughput.
// DynamoDB also splits partitions, after a time that it does not document, so these do not.
type Table struct {
	Latency Latency
	Dice    *Dice
	Usage   *Usage // counts write units; may be nil

	mu         sync.Mutex
	partitions []units
	whole      units
}

type units struct{ write, read bucket }

// NewOnDemand returns an on-demand table of so many partitions. Its throughput is what it
// takes at once, which is at most its quota ("warm throughput").
func NewOnDemand(partitions int, warmWrites, warmReads float64) *Table {
	return newTable(partitions, min(warmWrites, TableUnits), min(warmReads, TableUnits), 1)
}

// NewProvisioned returns a table with provisioned capacity, which keeps what is unused of up
// to 300 seconds. It begins with that.
func NewProvisioned(partitions int, writes, reads float64) *Table {
	return newTable(partitions, writes, reads, BurstSeconds)
}

func newTable(partitions int, writes, reads, seconds float64) *Table {
	t := &Table{whole: units{newBucket(writes, writes*seconds), newBucket(reads, reads*seconds)}}
	for range partitions {
		t.partitions = append(t.partitions, units{newBucket(PartitionWrites, PartitionWrites), newBucket(PartitionReads, PartitionReads)})
	}
	return t
}

// Write writes an item. hash says where its key is among all: 0 to 1.
func (t *Table) Write(hash float64, bytes int) error {
	n := WriteUnits(bytes)
	ok := t.take(hash, n, func(u *units) *bucket { return &u.write })
	t.mu.Lock()
	t.Usage.add(n, ok)
	t.mu.Unlock()
	return t.answer(ok)
}

// Read reads so many bytes that lie side by side, strongly consistently.
func (t *Table) Read(hash float64, bytes int) error {
	return t.answer(t.take(hash, ReadUnits(bytes), func(u *units) *bucket { return &u.read }))
}

func (t *Table) take(hash, n float64, of func(*units) *bucket) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	part, whole := of(&t.partitions[int(hash*float64(len(t.partitions)))]), of(&t.whole)
	if !part.refill(n) || !whole.refill(n) {
		return false
	}
	part.tokens -= n
	whole.tokens -= n
	return true
}

func (t *Table) answer(ok bool) error {
	t.Latency.sleep(t.Dice)
	if !ok {
		return ErrThrottled
	}
	return nil
}
