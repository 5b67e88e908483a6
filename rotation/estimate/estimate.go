// Package estimate computes, before a rotation begins, what it will call, how long it takes,
// what it costs, and whether it can end within its limits. It is pure: package rotation
// describes the walk over the rows, package flow the state machine, and the caller the rows
// and the settings. So the plan of the operator's tool and the refusal of a rotation rest on
// the same numbers.
//
// The time of a pass comes from walking its segments in virtual time ([Walk], walk.go). A
// step of a segment takes as long as what binds it: the KMS rate, the rows in flight, the
// processor, the write units of the table, or the reading of pages.
//
// What cannot be known before is left out, and [Plan.Unknown] names it: rows that change
// while they are moved, requests that are throttled and repeated, execution environments
// that Lambda replaces.
package estimate

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"
)

// Source says what a place holds.
type Source struct {
	Name   string
	Items  float64 // all items; rows are among them
	Rows   float64
	Shares []Share // how rows share wrapped data keys
	KEKs   int     // KEKs that the rows name; 0 is one

	ItemBytes    float64 // mean size of an item; 0: not known
	UpdateUnits  float64 // mean write units of the update of a row, without ExtraWrites; 0: from ItemBytes
	ExtraWrites  float64 // write units that indexes and replicas take for each update
	WrappedBytes int     // of a wrapped data key; 0 is [WrappedBytes]

	Segments  int     // in how many parts it is walked; 0: as configured
	PageItems int     // items of a page at most
	PageBytes float64 // bytes of a page at most; 0: not bounded

	WritesPerSecond float64 // write units a second that the table takes; 0: not limited
	ReadsPerSecond  float64 // read units a second

	Billing Billing
	Known   bool // its rows are known ciphers, which dual unwrap opens
	Whole   bool // an emergency rewraps its data keys without opening payloads
}

// Share is a number of data keys that equally many rows share.
type Share struct {
	Each float64 `json:"rows_each"`
	DEKs float64 `json:"data_keys"`
}

// Billing is how a source's requests are charged.
type Billing int

// The ways to charge, as package source names them.
const (
	Free Billing = iota
	DynamoDBByUnit
	S3ByRequest
)

// WrappedBytes is the length of a data key of 32 bytes that KMS has wrapped under a
// symmetric key.
const WrappedBytes = 184

// Settings are the parameters of a deployment and of AWS that decide the time.
type Settings struct {
	Emergency bool
	Drill     bool // a rotation that fails before the switch, on purpose

	Segments     int
	Concurrency  int     // segments that a distributed pass works on at once
	KMSRate      float64 // KMS requests a second of all processes together; 0: not limited
	WriteRate    float64 // write units a second of all of them in each table; 0: what the table takes
	CanaryRounds int
	OldKEKs      int  // KEKs that the rotation leaves
	Deep         bool // every distinct data key is unwrapped as proof, not a sample
	KeySettle    time.Duration
	DrainAtMost  time.Duration
	AuditRecords float64 // records of the audit chain before the rotation

	Latency  Latency
	RowCPU   time.Duration // time of a whole processor that a row takes when it is moved
	ReadCPU  time.Duration // the same for a row that is only read
	Overhead time.Duration // of each call of a function: the state machine, the start of the process
}

// Latency is the time of one request, as the caller sees it.
type Latency struct {
	KMS     time.Duration //nolint:staticcheck // the service, not milliseconds
	Scan    time.Duration // of one page
	Write   time.Duration // of one row
	Control time.Duration // of one item of the control table
}

// DefaultSettings are the parameters of the template, as TestSettingsAreTheTemplates holds
// them, the KMS requests a second that a rotation makes before CloudWatch has shown it that
// more are free, and the latencies with which docs/performance.md computes. The latencies are
// assumptions, not measurements of AWS. The processor's time of a row that is moved is that of
// BenchmarkRow in test/limits.
func DefaultSettings() Settings {
	return Settings{
		Segments: 8, Concurrency: 4, KMSRate: 1000, WriteRate: 40000, CanaryRounds: 5, Deep: true, KeySettle: 300 * time.Second, DrainAtMost: 30 * time.Minute,
		OldKEKs: 1,
		Latency: Latency{KMS: 5 * time.Millisecond, Scan: 20 * time.Millisecond, Write: 4 * time.Millisecond, Control: 4 * time.Millisecond},
		RowCPU:  280 * time.Microsecond, ReadCPU: 20 * time.Microsecond, Overhead: 500 * time.Millisecond,
	}
}

// Function is what a function of the stack may use. TestFunctionsAreTheStacks compares the
// list with functions/*/function.yaml.
type Function struct {
	Memory  int // MB
	Timeout time.Duration
}

// Functions lists the functions that a rotation calls, by their names in package flow.
var Functions = map[string]Function{
	"Preflight":  {256, 120 * time.Second},
	"Mint":       {256, 60 * time.Second},
	"DualUnwrap": {512, 120 * time.Second},
	"Approve":    {256, 30 * time.Second},
	"Switch":     {256, 60 * time.Second},
	"Drain":      {256, 60 * time.Second},
	"Rewrap":     {1024, 900 * time.Second},
	"Retire":     {1024, 900 * time.Second},
	"Anchor":     {256, 120 * time.Second},
	"Verify":     {1024, 900 * time.Second},
	"Notify":     {256, 30 * time.Second},
}

// wholeProcessor is the memory, in MB, at which a function has one whole processor. Its
// share grows in proportion (Lambda developer guide, "Configure Lambda function memory").
const wholeProcessor = 1769

// Calls counts requests of KMS by API.
type Calls struct {
	ReEncrypt       float64 `json:"ReEncrypt"`
	Decrypt         float64 `json:"Decrypt"`
	GenerateDataKey float64 `json:"GenerateDataKey"`
}

// Sum returns all of them.
func (c Calls) Sum() float64 { return c.ReEncrypt + c.Decrypt + c.GenerateDataKey }

func (c Calls) scale(by float64) Calls {
	return Calls{ReEncrypt: c.ReEncrypt * by, Decrypt: c.Decrypt * by, GenerateDataKey: c.GenerateDataKey * by}
}

func (c *Calls) add(o Calls) {
	c.ReEncrypt += o.ReEncrypt
	c.Decrypt += o.Decrypt
	c.GenerateDataKey += o.GenerateDataKey
}

// Bind names what a phase waits for most of its time.
type Bind string

// What binds a phase.
const (
	ByKMSRate   Bind = "KMS rate"
	ByInFlight  Bind = "rows in flight"
	ByProcessor Bind = "processor"
	ByWrites    Bind = "table writes"
	ByPages     Bind = "reading of pages"
	ByCalls     Bind = "calls of functions"
	ByWaiting   Bind = "waiting"
)

// Phase is one part of a rotation.
type Phase struct {
	Name    string        `json:"name"`
	Time    time.Duration `json:"time_ns"`
	AtMost  time.Duration `json:"at_most_ns,omitempty"` // more than Time: it depends on others
	Binds   Bind          `json:"binds"`
	Workers int           `json:"workers"` // processes at once

	KMS         Calls   `json:"kms"`
	Pages       float64 `json:"pages"`       // read of sources
	ReadUnits   float64 `json:"read_units"`  // of sources
	Writes      float64 `json:"row_writes"`  // of sources
	WriteUnits  float64 `json:"write_units"` // of sources, without indexes and replicas
	ExtraUnits  float64 `json:"extra_write_units"`
	ObjectReads float64 `json:"s3_reads"`
	ObjectPuts  float64 `json:"s3_writes"`
	Checkpoints float64 `json:"checkpoints"` // saved
	Calls       float64 `json:"function_calls"`
	GBSeconds   float64 `json:"lambda_gb_seconds"`

	spread    bool // each segment is a call of its own
	segments  float64
	mostCalls float64 // of one segment
}

// Plan is the estimate of one rotation.
type Plan struct {
	Phases      []Phase       `json:"phases"`
	Total       Phase         `json:"total"` // the sums; Time is without AtMost
	Transitions float64       `json:"state_transitions"`
	Events      float64       `json:"events"`       // of the execution's history
	ChildEvents float64       `json:"child_events"` // of the longest child execution's; 0 without children
	Control     Control       `json:"control"`
	AtMost      time.Duration `json:"at_most_ns"` // with all that depends on others
	Unknown     []string      `json:"unknown"`

	settings Settings
	sources  []Source
	walk     Walk
	machine  Machine
}

// Control counts the requests of the control table and of the audit bucket. The units of
// transitions are approximate: each writes four to six items.
type Control struct {
	Transitions float64 `json:"transactions"`
	ReadUnits   float64 `json:"read_units"`
	WriteUnits  float64 `json:"write_units"`
	AuditPuts   float64 `json:"audit_writes"`
	AuditGets   float64 `json:"audit_reads"`
}

// itemsOfTransition is how many items a transition of a rotation writes or checks: its record,
// the lock, the audit record, the head of the chain, and what it changes. A transaction is
// charged twice (DynamoDB developer guide, "Managing complex workflows with transactions").
const itemsOfTransition = 5

// Compute returns the estimate of a rotation over sources.
func Compute(w Walk, m Machine, s Settings, sources []Source) Plan {
	p := Plan{settings: s, walk: w, machine: m, sources: withDefaults(sources)}
	add := func(ph Phase) { p.Phases = append(p.Phases, ph) }
	var movers []int
	transitions := 2.0 // the start and the mint, or the roll back
	pass := func(name string) {
		if rule, ok := w.findPass(name); ok && (!s.Emergency || !rule.NotInEmergency) {
			var ph Phase
			ph, movers = w.walkPass(rule, s, p.sources, movers)
			add(ph)
			transitions++
		}
	}
	add(p.callPhase("preflight", "Preflight", Calls{}))
	pass(Census)
	add(p.callPhase("mint", "Mint", Calls{}))
	add(p.callPhase("rehearsal", "Rewrap", p.rehearsalCalls()))
	add(p.callPhase("dual unwrap", "DualUnwrap", p.dualUnwrapCalls()))
	transitions += 2
	if s.Drill {
		add(p.callPhase("roll back", "Retire", Calls{}))
		p.machine.Once = p.machine.Drill
		p.addOthers()
		p.addTotals(transitions)
		return p
	}
	add(Phase{Name: "settle", Time: s.KeySettle, Binds: ByWaiting})
	add(p.callPhase("switch", "Switch", Calls{}))
	drain := p.callPhase("drain", "Drain", Calls{})
	if drain.AtMost = drain.Time + s.DrainAtMost; s.DrainAtMost > 0 {
		drain.Binds = ByWaiting
	}
	add(drain)
	pass(Rewrap)
	pass(Confirm)
	pass(Verify)
	last := &p.Phases[len(p.Phases)-1]
	last.KMS.Decrypt += float64(s.OldKEKs) // each refuses to unwrap
	last.Time += time.Duration(s.OldKEKs) * s.Latency.KMS
	p.addOthers()
	p.addTotals(transitions + 2)
	return p
}

// addOthers adds the calls of the state machine that are in no other phase: notices, anchors,
// and the conclusions of maps.
func (p *Plan) addOthers() {
	n := p.machine.Once.Calls
	for _, ph := range p.Phases {
		if rule, _ := p.walk.findPass(ph.Name); ph.Calls > 0 && !rule.Spread {
			n--
		}
	}
	if n <= 0 {
		return
	}
	ph := p.callPhase("other calls", "Notify", Calls{})
	ph.Calls = n
	ph.Time = time.Duration(n) * ph.Time
	ph.GBSeconds = n * ph.GBSeconds
	p.Phases = append(p.Phases, ph)
}

// withDefaults fills in what a source does not say.
func withDefaults(sources []Source) []Source {
	out := make([]Source, len(sources))
	for i, src := range sources {
		src.KEKs = max(src.KEKs, 1)
		if src.WrappedBytes == 0 {
			src.WrappedBytes = WrappedBytes
		}
		if src.UpdateUnits == 0 && src.Billing == DynamoDBByUnit {
			src.UpdateUnits = max(1, math.Ceil(src.ItemBytes/1024)) // an update is charged by the whole item (developer guide, "Write requests")
		}
		out[i] = src
	}
	return out
}

// callPhase is a phase of one call, which lasts as long as its KMS requests one after the other.
func (p *Plan) callPhase(name, function string, kms Calls) Phase {
	ph := Phase{Name: name, Workers: 1, Calls: 1, KMS: kms, Binds: ByCalls}
	ph.Time = p.settings.Overhead + time.Duration(kms.Sum())*p.settings.Latency.KMS
	ph.GBSeconds = Functions[function].gigabytes() * ph.Time.Seconds()
	return ph
}

func (f Function) gigabytes() float64 { return float64(f.Memory) / 1024 }

// rehearsalCalls counts the trial of a sample of rows: each is unwrapped, rewrapped, and
// unwrapped again.
func (p *Plan) rehearsalCalls() Calls {
	rows := 0.0
	for _, src := range p.sources {
		segments := p.walk.segmentsOf(src, p.settings)
		first := min(src.Rows/float64(segments), float64(p.walk.RehearsalPage)*src.Rows/max(src.Items, 1))
		rows += float64(segments) * sampleOf(first, p.walk.RehearsalRows, src.KEKs)
	}
	return Calls{ReEncrypt: rows, Decrypt: 2 * rows}
}

// sampleOf is how many of n rows on a page are tried, if most of each of so many KEKs are.
func sampleOf(n float64, most, keks int) float64 { return min(n, float64(most*keks)) }

// dualUnwrapCalls counts canaries, known ciphers and the probe of each old KEK. A drill ends
// with its first canary.
func (p *Plan) dualUnwrapCalls() Calls {
	if p.settings.Drill {
		return Calls{GenerateDataKey: 1, Decrypt: 1}
	}
	rounds := float64(p.settings.CanaryRounds)
	c := Calls{GenerateDataKey: rounds + float64(p.settings.OldKEKs), Decrypt: 2 * rounds}
	for _, src := range p.sources {
		if src.Known {
			c.ReEncrypt += src.Rows
			c.Decrypt += 2 * src.Rows
		}
	}
	return c
}

// addTotals adds up the phases, and counts the control table and the state machine.
func (p *Plan) addTotals(transitions float64) {
	t := &p.Total
	t.Name = "total"
	for _, ph := range p.Phases {
		t.Time += ph.Time
		p.AtMost += max(ph.AtMost, ph.Time)
		t.KMS.add(ph.KMS)
		t.Pages += ph.Pages
		t.ReadUnits += ph.ReadUnits
		t.Writes += ph.Writes
		t.WriteUnits += ph.WriteUnits
		t.ExtraUnits += ph.ExtraUnits
		t.ObjectReads += ph.ObjectReads
		t.ObjectPuts += ph.ObjectPuts
		t.Checkpoints += ph.Checkpoints
		t.Calls += ph.Calls
		t.GBSeconds += ph.GBSeconds
		t.Workers = max(t.Workers, ph.Workers)
	}
	p.Control = Control{
		Transitions: transitions,
		ReadUnits:   2*t.Checkpoints + 5*t.Calls,                     // each call reads the rotation and the KEKs
		WriteUnits:  t.Checkpoints + 2*itemsOfTransition*transitions, // a checkpoint is under 1 KB, one of a census under 3
		AuditPuts:   transitions,                                     // a record each
		AuditGets:   p.settings.AuditRecords + transitions,           // verify reads the chain from its first record
	}
	if p.settings.Drill {
		p.Control.AuditGets = 0
	}
	for _, ph := range p.Phases {
		if ph.Name == Census {
			p.Control.WriteUnits += 2 * ph.Checkpoints
		}
	}
	p.countMachine()
	p.Unknown = []string{
		"what live traffic leaves of KMS's quota and of the tables' capacity: the rotation takes what CloudWatch shows to be free, up to KmsRate and WriteRate",
		"rows that change or are inserted while they are moved: each costs a read, and most of them a KMS request, more",
		"requests that KMS or DynamoDB throttles and that are repeated",
		"execution environments that Lambda replaces: a new one asks KMS again for the data keys that it meets",
	}
	for _, src := range p.sources {
		if src.Billing == DynamoDBByUnit && src.ItemBytes == 0 {
			p.Unknown = append(p.Unknown, fmt.Sprintf("the size of the items of %s, so its read units, and whether an update is more than one write unit", src.Name))
		}
	}
}

// CountShares returns the shares of data keys that have so many rows each. Keys without rows
// are left out.
func CountShares(rows []int) []Share {
	keys := map[int]float64{}
	for _, n := range rows {
		if n > 0 {
			keys[n]++
		}
	}
	var out []Share
	for _, each := range slices.Sorted(maps.Keys(keys)) {
		out = append(out, Share{Each: float64(each), DEKs: keys[each]})
	}
	return out
}

// GuessShares returns the shares of a place with so many rows, of which seen were read and had
// so many distinct data keys. It assumes that equally many rows share each. All rows read
// are described exactly by [CountShares].
func GuessShares(rows, seen, distinct float64) []Share {
	if rows <= 0 || seen <= 0 || distinct <= 0 {
		return nil
	}
	read := min(1, seen/rows)
	// The number of distinct data keys among the rows read falls with the rows of each.
	met := func(each float64) float64 { return rows / each * (1 - math.Pow(1-read, each)) }
	low, high := 1.0, rows
	for range 100 {
		if each := (low + high) / 2; met(each) > distinct {
			low = each
		} else {
			high = each
		}
	}
	return []Share{{Each: low, DEKs: rows / low}}
}

// CountDEKs returns how many data keys shares have.
func CountDEKs(shares []Share) (n float64) {
	for _, s := range shares {
		n += s.DEKs
	}
	return n
}
