package estimate

import (
	"container/heap"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// The passes over the rows.
const (
	Census  = "census"
	Rewrap  = "rewrap"
	Confirm = "confirm"
	Verify  = "verify"
)

// Walk describes the engine that walks over rows. Package rotation fills it in from its own
// constants.
type Walk struct {
	RowsInFlight int // rows that a process works on at once
	PagesAhead   int // 0: a page is read when the one before is saved
	SaveEvery    time.Duration

	SegmentsInFlight int // segments that a pass in one process works on at once
	MemoryBytes      int // what a process remembers of KMS's answers; 0: everything
	EntryBytes       int // of each answer, beside its bytes
	ProofSample      int // distinct data keys that a call unwraps of each segment, if not all
	ProofBytes       int // what a process remembers of each that it has unwrapped, if all are

	Reserve time.Duration // before a call's end no more work begins
	Idle    time.Duration // a pass without a checkpoint for so long begins again

	RehearsalRows int // tried of each KEK and segment
	RehearsalPage int // items of a segment among which they are looked for

	Passes []Pass
}

// Pass is one pass over every row.
type Pass struct {
	Name           string
	Function       string        // as package flow names it
	Spread         bool          // each segment is a call of its own, some at once; else one call works on all of them
	Moves          bool          // rewraps rows and writes them
	AloneFor       time.Duration // the call that concludes works on all segments for so long, before each is a call of its own; 0: to the end
	Proves         bool          // unwraps data keys under the new KEK
	NotInEmergency bool
}

func (w Walk) findPass(name string) (Pass, bool) {
	for _, p := range w.Passes {
		if p.Name == name {
			return p, true
		}
	}
	return Pass{}, false
}

// segmentsOf returns in how many segments a source is walked.
func (w Walk) segmentsOf(src Source, s Settings) int {
	if src.Segments > 0 {
		return src.Segments
	}
	return max(1, s.Segments)
}

// meet returns how many distinct data keys are met in a fraction of a source's rows, if rows
// are in the order of a hash, as DynamoDB scans them.
func (s Source) meet(fraction float64) float64 {
	n := 0.0
	for _, h := range s.Shares {
		if h.Each == 1 {
			n += h.DEKs * fraction
			continue
		}
		n += h.DEKs * (1 - math.Pow(max(0, 1-fraction), h.Each))
	}
	return n
}

// pageItems returns the items of a full page.
func (s Source) pageItems() float64 {
	n := float64(max(s.PageItems, 1))
	if s.PageBytes > 0 && s.ItemBytes > 0 {
		n = min(n, max(1, math.Floor(s.PageBytes/s.ItemBytes)))
	}
	return n
}

// readUnits returns the units of a consistent read of a source: one for each 4 KB of the
// items' whole size, whatever is projected (DynamoDB developer guide, "Capacity consumption
// for scan operations").
func (s Source) readUnits() float64 {
	if s.Billing != DynamoDBByUnit {
		return 0
	}
	return s.Items * s.ItemBytes / 4096
}

// segment is one part of a source that a lane walks.
type segment struct {
	src   int     // index of the source
	part  float64 // fraction of the source's rows
	by    int     // the process that has rewrapped it; 0 before
	pages float64
}

// process is one execution environment, or the operator's own process.
type process struct {
	n       int
	walked  [][]float64 // fraction of each source whose data keys it has met, by the process that has rewrapped it
	begun   []bool      // it has met any row of the source
	known   float64     // answers of KMS that it has met
	writes  []float64   // when each table's next write unit of its own is due, in seconds
	kmsNext float64     // when the limiter's next token is due, in seconds; ahead of time by at most the burst
	active  int         // lanes that work
}

// lane walks one segment after the other.
type lane struct {
	p      *process
	at     float64 // virtual time in seconds
	seg    int     // index of the segment; -1 if none is left
	done   float64 // fraction of the segment that is walked
	called float64 // when the call began
	calls  float64 // so far: of this segment if each has its own, else of the pass
	began  float64 // when the call began with this segment
	from   float64 // what was walked of the segment then
	proved float64 // data keys that the call has unwrapped of the segment

	asked float64 // data keys of the segment that KMS was asked about

	pageNext float64 // when the reading of pages has come so far
}

// lanes is a heap by time.
type lanes []*lane

func (h lanes) Len() int           { return len(h) }
func (h lanes) Less(i, j int) bool { return h[i].at < h[j].at }
func (h lanes) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *lanes) Push(x any)        { *h = append(*h, x.(*lane)) } //nolint:forcetypeassert // its own
func (h *lanes) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}

// walker walks one pass in virtual time.
type walker struct {
	Walk
	pass     Pass
	set      Settings
	sources  []Source
	segments []segment
	next     int
	lanes    lanes
	out      Phase
	binds    map[Bind]float64
	writes   []float64 // when each table's next write unit is due, in seconds
	perCall  float64   // seconds of work in one call
	rate     float64   // KMS requests a second of each process
	cpu      float64   // seconds of a row, at the processor's share of the function
	ended    float64
	movers   []int // by segment, the process that has rewrapped it: rows of one data key that two have rewrapped have two; nil before
}

// walkPass returns the phase of a pass over all sources. What one call does not reach alone is
// spread over functions, and then concluded by another call. movers says which process has
// rewrapped each segment, and so does what it returns.
func (w Walk) walkPass(p Pass, s Settings, sources []Source, movers []int) (Phase, []int) {
	alone, by := w.walkOnce(p, s, sources, movers)
	if p.Spread || p.AloneFor == 0 || alone.Time <= p.AloneFor {
		return alone, by
	}
	p.Spread = true
	out, by := w.walkOnce(p, s, sources, movers)
	share := p.AloneFor.Seconds() / alone.Time.Seconds() // of the work, that is done before
	out.Time = p.AloneFor + time.Duration(float64(out.Time)*(1-share)) + s.Overhead
	out.KMS = out.KMS.scale(1 - share)
	out.KMS.add(alone.KMS.scale(share))
	out.GBSeconds = out.GBSeconds*(1-share) + p.AloneFor.Seconds()*Functions[p.Function].gigabytes()
	out.Calls += 2 // one that works alone, one that concludes
	return out, by
}

// walkOnce walks a pass, by functions or by one of them.
func (w Walk) walkOnce(p Pass, s Settings, sources []Source, movers []int) (Phase, []int) {
	f := Functions[p.Function]
	k := walker{
		Walk: w, pass: p, set: s, sources: sources, binds: map[Bind]float64{}, writes: make([]float64, len(sources)),
		perCall: (f.Timeout - min(w.Reserve, f.Timeout/5)).Seconds(), rate: s.processRate(), movers: movers,
	}
	cpu := s.ReadCPU
	if p.Moves {
		cpu = s.RowCPU
	}
	k.cpu = cpu.Seconds() * wholeProcessor / float64(min(f.Memory, wholeProcessor))
	k.out = Phase{Name: p.Name, Workers: 1, spread: p.Spread}
	k.cutSegments()
	k.startLanes()
	for len(k.lanes) > 0 {
		k.step()
	}
	k.countUnits()
	for bind, spent := range k.binds {
		if spent > k.binds[k.out.Binds] || k.out.Binds == "" {
			k.out.Binds = bind
		}
	}
	k.out.Time = seconds(k.ended)
	k.out.GBSeconds *= f.gigabytes()
	if k.pass.Moves {
		k.movers = shuffleMovers(k.segments)
	}
	return k.out, k.movers
}

// shuffleMovers returns by which process each segment was rewrapped. Which process works on
// which segment of the passes after it has nothing to do with that, so the processes of each
// source are in an order by chance, always the same.
func shuffleMovers(segments []segment) []int {
	out := make([]int, len(segments))
	for i, seg := range segments {
		out[i] = seg.by
	}
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // not a secret
	for from := 0; from < len(out); {
		to := from
		for to < len(out) && segments[to].src == segments[from].src {
			to++
		}
		random.Shuffle(to-from, func(i, j int) { out[from+i], out[from+j] = out[from+j], out[from+i] })
		from = to
	}
	return out
}

func seconds(s float64) time.Duration {
	return time.Duration(min(s, math.MaxInt64/2e9) * float64(time.Second))
}

// cutSegments lists the segments of all sources, in the order in which they are walked.
func (k *walker) cutSegments() {
	for i, src := range k.sources {
		n := k.segmentsOf(src, k.set)
		items := src.Items / float64(n)
		for range n {
			// A page that is full may be the last; DynamoDB says so with one more page, which is
			// empty.
			k.segments = append(k.segments, segment{src: i, part: 1 / float64(n), pages: math.Floor(items/src.pageItems()) + 1})
		}
	}
	for i, by := range k.movers {
		k.segments[i].by = by
	}
}

// startLanes makes the processes and gives each lane its first segment.
func (k *walker) startLanes() {
	processes, each := 1, min(max(1, min(k.SegmentsInFlight, k.set.Segments)), len(k.segments))
	if k.pass.Spread {
		processes, each = min(max(1, k.set.Concurrency), len(k.segments)), 1
	}
	k.out.Workers = processes
	for n := range processes {
		p := &process{n: n, writes: make([]float64, len(k.sources)), walked: make([][]float64, len(k.sources)), begun: make([]bool, len(k.sources)), kmsNext: -burst(k.rate)}
		for i := range p.walked {
			p.walked[i] = make([]float64, 1+slices.Max(append(k.movers, 0)))
			p.writes[i] = -burst(k.set.writeRate())
		}
		for range each {
			l := &lane{p: p}
			if !k.pass.Spread {
				k.beginCall(l)
			}
			if k.takeSegment(l) {
				p.active++
				heap.Push(&k.lanes, l)
			}
		}
	}
}

// processRate returns the share of one process in the KMS requests a second.
func (s Settings) processRate() float64 { return s.KMSRate / float64(max(s.Concurrency, 1)) }

// writeTime returns when a table has taken so many write units, in seconds, if it takes so many a
// second from a moment on.
func writeTime(from, units, perSecond float64) float64 {
	if perSecond <= 0 { // not limited
		return 0
	}
	return from + units/perSecond
}

// burst is how many seconds a process may be ahead of a rate: a tenth of a second, and at least
// one request.
func burst(rate float64) float64 {
	if rate <= 0 {
		return 0
	}
	return max(1, math.Floor(rate/10)) / rate
}

// writeRate returns the share of one process in WriteRate.
func (s Settings) writeRate() float64 { return s.WriteRate / float64(max(s.Concurrency, 1)) }

// takeSegment gives a lane the next segment; false if none is left.
func (k *walker) takeSegment(l *lane) bool {
	if k.next == len(k.segments) {
		return false
	}
	l.seg, l.done = k.next, 0
	if k.pass.Moves {
		k.segments[l.seg].by = l.p.n
	}
	k.next++
	if k.pass.Spread {
		l.calls = 0
		k.beginCall(l)
	}
	k.beginPages(l)
	return true
}

// beginCall begins a call of the function. The calls of a pass in one process are those of
// the lane with the most of them.
func (k *walker) beginCall(l *lane) {
	l.at += k.set.Overhead.Seconds()
	l.called = l.at
	l.calls++
	k.out.mostCalls = max(k.out.mostCalls, l.calls)
	if k.pass.Spread {
		k.out.Calls++
	} else {
		k.out.Calls = k.out.mostCalls
	}
}

// beginPages begins with the pages of a segment, from its checkpoint on.
func (k *walker) beginPages(l *lane) {
	l.began = l.at
	l.from = l.done
	l.proved = 0
	l.asked = 0
	l.at += k.set.Latency.Control.Seconds() // the checkpoint
	if k.PagesAhead > 0 {
		l.at += k.set.Latency.Scan.Seconds() // nothing can be done before the first page
	}
	l.pageNext = l.at
}

// step walks the earliest lane on: by a small part of its segment, or to the end of its call.
func (k *walker) step() {
	l := k.lanes[0]
	src := k.sources[k.segments[l.seg].src]
	part := min(1-l.done, max(l.done/8, 1.0/256), 1.0/32)
	took, _ := k.work(l, src, part, false)
	end := l.called + k.perCall
	if took > 0 && l.at+took > end {
		if left := end - l.at; left > 0 {
			part *= max(left/took, 1e-9)
		} else { // a call makes some progress however late it is
			part = min(part, src.pageItems()/max(src.Items*k.segments[l.seg].part, 1))
		}
	}
	took, bind := k.work(l, src, part, true)
	l.at += took
	l.done += part
	k.binds[bind] += took
	switch {
	case l.done > 1-1e-12:
		k.endSegment(l, src)
	case l.at >= end:
		k.continueCall(l)
	}
	k.ended = max(k.ended, l.at)
	if l.seg < 0 {
		heap.Remove(&k.lanes, 0)
		return
	}
	heap.Fix(&k.lanes, 0)
}

// work returns how long a part of a segment takes and what binds it. With really it also
// counts what is done.
func (k *walker) work(l *lane, src Source, part float64, really bool) (float64, Bind) {
	seg := k.segments[l.seg]
	rows := src.Rows * seg.part * part
	keys := k.missed(l, src, part, really) // data keys that KMS is asked about
	calls := k.callsOf(src, keys)
	took, bind := k.rowTime(l, src, rows, keys), ByInFlight
	longer := func(s float64, b Bind) {
		if s > took {
			took, bind = s, b
		}
	}
	longer(rows*k.cpu*float64(max(l.p.active, 1)), ByProcessor)
	kmsNext := max(l.p.kmsNext, l.at-burst(k.rate))
	if k.rate > 0 {
		kmsNext += calls.Sum() / k.rate
		longer(kmsNext-l.at, ByKMSRate)
	}
	table, own := k.writes[seg.src], l.p.writes[seg.src]
	if k.pass.Moves { // the table takes so much of all processes, and each has its share of WriteRate
		units := rows * (src.UpdateUnits + src.ExtraWrites)
		table = writeTime(max(table, l.at), units, src.WritesPerSecond)
		own = writeTime(max(own, l.at-burst(k.set.writeRate())), units, k.set.writeRate())
		longer(max(table, own)-l.at, ByWrites)
	}
	pages := k.pageTime(seg) * part
	pageNext := max(l.pageNext, l.at-k.ahead()) + pages
	if k.PagesAhead > 0 {
		longer(pageNext-l.at, ByPages)
	} else {
		if bind == ByKMSRate { // the last rows of a page, after KMS was asked about the last data key
			took += (k.set.Latency.KMS + k.set.Latency.Write).Seconds() * seg.pages * part
		}
		if took += pages; pages > took/2 {
			bind = ByPages
		}
	}
	if really {
		l.p.kmsNext = kmsNext
		k.writes[seg.src] = table
		l.p.writes[seg.src] = own
		l.pageNext = pageNext
		l.p.begun[seg.src] = true
		l.asked += keys
		k.countMoves(src, rows, calls)
	}
	return took, bind
}

// rowTime is how long rows take in the slots that lanes share. Rows that are only read take
// none; KMS is asked about so many data keys.
func (k *walker) rowTime(l *lane, src Source, rows, keys float64) float64 {
	lat := k.set.Latency
	slots := float64(max(k.RowsInFlight, 1))
	lanes := float64(max(l.p.active, 1))
	ask := lat.KMS.Seconds() * k.callsOf(src, 1).Sum()
	busy, working := ask*keys, keys
	if k.pass.Moves {
		busy, working = busy+lat.Write.Seconds()*rows, rows
	}
	if k.PagesAhead == 0 && lanes == 1 && rows > 0 { // the last rows of each page leave slots idle
		onPage := min(src.pageItems(), src.Items*k.segments[l.seg].part) * src.Rows / src.Items * working / rows
		if turns := onPage / slots; turns > 0 {
			busy *= math.Ceil(turns) / turns
		}
	}
	took := busy * lanes / slots
	if (k.pass.Moves || k.pass.Proves && k.set.Deep) && !l.p.begun[k.segments[l.seg].src] { // the first rows with the same data key wait for one answer
		took += ask * max(0, 1-src.meet(min(1, slots/max(src.Rows, 1)))/slots)
	}
	return took
}

// pageTime is how long the pages of a segment take that are not read before the first row:
// each is read, and saved if it is the turn of a checkpoint.
func (k *walker) pageTime(seg segment) float64 {
	read, save := k.set.Latency.Scan.Seconds(), 2*k.set.Latency.Control.Seconds()
	if k.SaveEvery > 0 {
		save = 0 // it is not noticed beside the work of SaveEvery
	}
	if k.PagesAhead == 0 {
		return seg.pages*read + (seg.pages-1)*save
	}
	return (seg.pages - 1) * max(read, save)
}

// ahead is how much of a lane's reading may be done before it is needed: the pages that are
// read, and those whose rows wait.
func (k *walker) ahead() float64 {
	return float64(2*k.PagesAhead) * k.set.Latency.Scan.Seconds()
}

// countMoves counts what was done to rows.
func (k *walker) countMoves(src Source, rows float64, calls Calls) {
	k.out.KMS.add(calls)
	if !k.pass.Moves {
		return
	}
	k.out.Writes += rows
	k.out.WriteUnits += rows * src.UpdateUnits
	k.out.ExtraUnits += rows * src.ExtraWrites
	if src.Billing == S3ByRequest {
		k.out.ObjectPuts += rows
	}
}

// missed returns the data keys of a part of a segment that KMS is asked about: those that the
// process has not met before, and those that it has forgotten.
func (k *walker) missed(l *lane, src Source, part float64, really bool) float64 {
	seg := k.segments[l.seg]
	switch {
	case k.pass.Moves, k.pass.Proves && k.set.Deep:
		by := seg.by
		if k.pass.Moves {
			by = 0 // whatever process rewraps them, rows that share a data key share it still
		}
		before := l.p.walked[seg.src][by]
		after := min(1, before+seg.part*part)
		fresh := src.meet(after) - src.meet(before)
		keys := fresh
		if room := k.room(src); l.p.known > room {
			keys += max(0, src.Rows*seg.part*part-fresh) * (1 - room/l.p.known)
		}
		if really {
			l.p.walked[seg.src][by] = after
			l.p.known += fresh
		}
		return keys
	case k.pass.Proves:
		keys := min(src.meet(seg.part*(l.done-l.from+part))-src.meet(seg.part*(l.done-l.from)), float64(k.ProofSample)-l.proved)
		if really {
			l.proved += keys
		}
		return keys
	}
	return 0
}

// room returns how many answers of KMS fit into the memory of a process.
func (k *walker) room(src Source) float64 {
	if k.MemoryBytes <= 0 {
		return math.Inf(1)
	}
	size := src.WrappedBytes + k.EntryBytes
	if k.pass.Proves {
		size = k.ProofBytes + k.EntryBytes
	} else if k.set.Emergency && !src.Whole {
		size += 64 // the old and the fresh data key
	}
	return float64(k.MemoryBytes / size)
}

// callsOf returns the KMS requests for so many data keys.
func (k *walker) callsOf(src Source, keys float64) Calls {
	if k.pass.Moves && k.set.Emergency && !src.Whole {
		return Calls{Decrypt: keys, GenerateDataKey: keys}
	}
	return Calls{ReEncrypt: keys}
}

// endSegment ends a lane's segment: the last rows, the last checkpoint, and the next segment.
func (k *walker) endSegment(l *lane, src Source) {
	if src.Rows > 0 {
		l.at += k.lastRow(l, src)
	}
	k.savePages(l)
	if !k.takeSegment(l) {
		l.seg = -1
		l.p.active--
		if k.pass.Spread {
			k.out.GBSeconds += l.at
		}
	}
}

// lastRow is the time for which the last rows of a segment leave other slots idle: a row that
// is alone takes all of its time, one of many half of it on average.
func (k *walker) lastRow(l *lane, src Source) float64 {
	seg := k.segments[l.seg]
	rows := src.Rows * seg.part
	ask := k.set.Latency.KMS.Seconds() * k.callsOf(src, 1).Sum()
	alone := func(n float64) float64 { return 1 - min(1, n/float64(max(k.RowsInFlight, 1)))/2 }
	switch {
	case k.pass.Moves:
		return (k.set.Latency.Write.Seconds() + ask*min(1, src.meet(1)/src.Rows)) * alone(rows)
	case l.asked > 0 && seg.pages <= 1:
		return ask * alone(l.asked)
	case l.asked > 0:
		return ask * alone(l.asked) * min(1, l.asked/rows)
	}
	return 0
}

// continueCall ends a lane's call, because its time is up, and begins the next one.
func (k *walker) continueCall(l *lane) {
	k.savePages(l)
	k.beginCall(l)
	k.beginPages(l)
}

// savePages saves the last checkpoint of a segment, or of a call, and counts it and those
// before it: one after each so many pages that they take SaveEvery.
func (k *walker) savePages(l *lane) {
	pages := k.segments[l.seg].pages * (l.done - l.from)
	between := 1.0
	if spent := l.at - l.began; spent > 0 && pages > 0 {
		between = max(1, math.Ceil(k.SaveEvery.Seconds()/(spent/pages)-1e-9))
	}
	k.out.Checkpoints += max(1, math.Ceil(pages/between-1e-9))
	l.at += 2 * k.set.Latency.Control.Seconds() // it is saved and read
}

// countUnits counts what a pass reads, which does not depend on time.
func (k *walker) countUnits() {
	for _, seg := range k.segments {
		k.out.Pages += seg.pages
	}
	for _, src := range k.sources {
		k.out.ReadUnits += src.readUnits()
		if src.Billing == S3ByRequest {
			k.out.ObjectReads += src.Rows
		}
	}
	if !k.pass.Spread {
		k.out.GBSeconds = k.ended
	}
	k.out.segments = float64(len(k.segments))
}
