package sim

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/matter-ops/kms-rotation/envelope"
	"github.com/matter-ops/kms-rotation/internal/attr"
	"github.com/matter-ops/kms-rotation/internal/keyrecord"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/source/deks"
	dynamosource "github.com/matter-ops/kms-rotation/source/dynamodb"
	"github.com/matter-ops/kms-rotation/test/membucket"
	"github.com/matter-ops/kms-rotation/test/memddb"
	"github.com/matter-ops/kms-rotation/test/memstore"
	"github.com/matter-ops/kms-rotation/test/trace"
)

// The second place with keyed rows: the client and the drivers as they are shipped, on a key
// table in memory and a bucket for the copies of its records. The table of rows has embedded
// rows too: the known cipher, one that a conversion may move, and what backups bring back.

const (
	deksTable  = "deks"
	keysSource = "keys"
	copyBucket = "audit"
)

// The bounds of a data key: with its second row the service has used one up.
const (
	maxKeyUses = 2
	maxKeyAge  = 2 * time.Hour
)

// keyedConfig is the definition of the table of rows.
func keyedConfig() dynamosource.Config {
	c := tableConfig(rowTable)
	c.Envelope, c.DEKID = envelope.EnvelopeKeyed, "dek_id"
	c.Context = map[string]string{"table": rowTable}
	return c
}

// embedded reports whether a row is written as an embedded one.
func (e *errand) embedded() bool {
	return e.insert && (strings.HasPrefix(e.id, "known-") || strings.HasPrefix(e.id, "old-"))
}

// keyRecords is the key table of a run.
type keyRecords struct {
	r      *run
	under  *stepsDB
	table  *deks.Table
	bucket copies3
	seen   map[string]keyrecord.Record // as they were when they were checked last
	deks   map[string]string           // what each record unwraps to
	lost   map[string]bool             // records that are gone by mistake
	losses int

	recording bool
	mu        sync.Mutex // of what follows: one effect at a time
	recorder  *trace.KeyedRecorder
	copies    map[string][]byte
}

func newKeyRecords(r *run, under *stepsDB) *keyRecords {
	k := &keyRecords{
		r: r, under: under, bucket: copies3{under.hooked, membucket.New()},
		seen: map[string]keyrecord.Record{}, deks: map[string]string{}, lost: map[string]bool{}, copies: map[string][]byte{},
	}
	var err error
	k.table, err = deks.Open(under, k.bucket, deks.Places{ControlTable: controlTable, Bucket: copyBucket}, k.source())
	r.must(err)
	return k
}

// source implements [keyTable].
func (k *keyRecords) source() kek.Source {
	def := deks.Config{Table: deksTable}.Source()
	def.Name = keysSource
	return def
}

// config is that of a client.
func (k *keyRecords) config() *envelope.KeyTable {
	return &envelope.KeyTable{Table: deksTable, Bucket: copyBucket, S3: recordedBucket{k}, MaxUses: maxKeyUses, MaxAge: maxKeyAge}
}

// recordedBucket is the bucket of the copies, for processes.
type recordedBucket struct{ k *keyRecords }

func (b recordedBucket) PutObject(c context.Context, in *s3.PutObjectInput, _ ...func(*s3.Options)) (out *s3.PutObjectOutput, err error) {
	b.k.r.atomically(func() { out, err = b.k.bucket.Bucket.PutObject(c, in) })
	return out, err
}

// copies3 is the bucket of the copies, for the steps.
type copies3 struct {
	*hooked
	*membucket.Bucket
}

func (b copies3) PutObject(c context.Context, in *s3.PutObjectInput, _ ...func(*s3.Options)) (*s3.PutObjectOutput, error) {
	return asked(b.hooked, "S3.PutObject", func() (out *s3.PutObjectOutput, err error) {
		b.r.atomically(func() { out, err = b.Bucket.PutObject(c, in) })
		return out, err
	})
}

func (b copies3) GetObject(c context.Context, in *s3.GetObjectInput, _ ...func(*s3.Options)) (*s3.GetObjectOutput, error) {
	return asked(b.hooked, "S3.GetObject", func() (*s3.GetObjectOutput, error) { return b.Bucket.GetObject(c, in) })
}

func (b copies3) ListObjectsV2(c context.Context, in *s3.ListObjectsV2Input, _ ...func(*s3.Options)) (*s3.ListObjectsV2Output, error) {
	return asked(b.hooked, "S3.ListObjectsV2", func() (*s3.ListObjectsV2Output, error) { return b.Bucket.ListObjectsV2(c, in) })
}

// oneRecord is the key table with pages of one record, as [scheduledSource].
type oneRecord struct{ *deks.Table }

// Scan implements [source.Driver].
func (o oneRecord) Scan(ctx context.Context, req source.ScanRequest) (source.Page, error) {
	req.Limit = 1
	return o.Table.Scan(ctx, req)
}

// keyedSource is a source whose rows may be keyed.
type keyedSource struct {
	*scheduledSource
	source.Converter
}

// toConvert marks the context of a conversion: it does not see the known ciphers, which dual
// unwrap needs as they are.
type toConvert struct{}

// Scan implements [source.Driver].
func (s keyedSource) Scan(ctx context.Context, req source.ScanRequest) (source.Page, error) {
	p, err := s.scheduledSource.Scan(ctx, req)
	if ctx.Value(toConvert{}) != nil {
		p.Rows = slices.DeleteFunc(p.Rows, func(row source.Row) bool { return strings.Contains(row.ID, "known-") })
	}
	return p, err
}

// open implements [keyTable].
func (k *keyRecords) open(def kek.Source, rows *scheduledSource) source.Driver {
	if def.Name == keysSource {
		return oneRecord{k.table}
	}
	return keyedSource{rows, rows.rows.(*realRows).source} //nolint:forcetypeassert // there are no others here
}

// records are those that are stored, by id.
func (k *keyRecords) records() map[string]keyrecord.Record {
	out := map[string]keyrecord.Record{}
	k.under.Each(deksTable, func(i memddb.Item) {
		r, err := keyrecord.Decode(i)
		k.r.must(err)
		out[r.DEKID] = r
	})
	return out
}

// record is the record of a data key, or of one that was lost the newest copy that is usable.
func (k *keyRecords) record(id string) (keyrecord.Record, bool) {
	out, err := k.under.DB.GetItem(ctx, &dynamodb.GetItemInput{TableName: aws.String(deksTable), Key: keyrecord.Key(id)})
	k.r.must(err)
	if out.Item != nil {
		r, err := keyrecord.Decode(out.Item)
		k.r.must(err)
		return r, true
	}
	if !k.lost[id] {
		return keyrecord.Record{}, false
	}
	for _, key := range slices.Backward(k.bucket.Keys(keyrecord.CopiesOf(id))) {
		r, err := keyrecord.DecodeCopy(key, k.read(key))
		k.r.must(err)
		if k.r.check.usable(r.KEKID) {
			return r, true
		}
	}
	return keyrecord.Record{}, false
}

// resolve returns a keyed row with what opens it. Without a record, or a copy of one that was
// lost, it is under no KEK (spec/keyed.tla: NoKeyOrphans, NoDekLost).
func (k *keyRecords) resolve(i memddb.Item, id string, row memstore.Record) memstore.Record {
	row.KEK = ""
	r, ok := k.record(id)
	if !ok {
		return row
	}
	var err error
	row.KEK, row.WrappedDEK, row.Context = r.KEKID, r.WrappedDEK, keyrecord.EncryptionContext(r)
	row.Bind, err = keyedConfig().WithDefaults().KeyedBoundOf(i, []string{"id"}, id)
	k.r.must(err)
	return row
}

// check implements [keyTable]: NoKeyOrphans and BornBound of spec/keyed.tla for records, and
// what each step of a record's life must be.
func (k *keyRecords) check() {
	records := k.records()
	for _, id := range slices.Sorted(maps.Keys(k.seen)) {
		if _, ok := records[id]; !ok && !k.lost[id] {
			k.r.violated("NoKeyOrphans", "the record of data key %s is gone", id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(records)) {
		now := records[id]
		if !k.r.check.usable(now.KEKID) {
			k.r.violated("NoKeyOrphans", "the record of data key %s is under %s, which is %q in the registry", id, now.KEKID, k.r.check.states[now.KEKID])
			return
		}
		if was, ok := k.seen[id]; !ok || k.lost[id] || string(was.WrappedDEK) != string(now.WrappedDEK) {
			k.written(was, now)
		}
		k.seen[id] = now
		delete(k.lost, id)
	}
}

// written checks a version of a record that was not there before.
func (k *keyRecords) written(was, now keyrecord.Record) {
	r := k.r
	state := r.check.states[now.KEKID]
	created := was.DEKID == "" || k.lost[now.DEKID]
	switch {
	case created && rank[state] >= rank[kek.Sealed]:
		r.violated("SealedIsShut", "a record of data key %s was created under %s, which is %s", now.DEKID, now.KEKID, state)
	case was.KEKEpoch > now.KEKEpoch:
		r.violated("RecordForward", "the record of data key %s went from epoch %d back to %d", now.DEKID, was.KEKEpoch, now.KEKEpoch)
	case was.DEKID != "" && was.BornEpoch != now.BornEpoch:
		r.violated("BornBound", "data key %s was made in epoch %d, its record says %d", now.DEKID, was.BornEpoch, now.BornEpoch)
	case !slices.Contains(k.bucket.Keys(keyrecord.CopiesOf(now.DEKID)), keyrecord.CopyKey(now)):
		r.violated("CopyFirst", "a record of data key %s is stored, and its copy %s is not", now.DEKID, keyrecord.CopyKey(now))
	}
	dek, err := r.kms.Decrypt(ctx, now.KEKID, now.WrappedDEK, keyrecord.EncryptionContext(now))
	if first, ok := k.deks[now.DEKID]; err != nil || ok && first != string(dek) {
		r.violated("RowIntegrity", "the record of data key %s under %s unwraps to another key: %v", now.DEKID, now.KEKID, err)
		return
	}
	k.deks[now.DEKID] = string(dek)
	if _, ok := r.check.seen.First[string(dek)]; !ok {
		r.check.seen.First[string(dek)] = now.KEKID
	}
}

var assignment = regexp.MustCompile(`(#\w+) = (:\w+)`)

// assigned are the attributes that an update sets.
func assigned(in *dynamodb.UpdateItemInput) memddb.Item {
	out := memddb.Item{}
	for _, m := range assignment.FindAllStringSubmatch(aws.ToString(in.UpdateExpression), -1) {
		out[in.ExpressionAttributeNames[m[1]]] = in.ExpressionAttributeValues[m[2]]
	}
	return out
}

// sealed notes that a process has sealed a row, and holds that to the bounds of its data key.
func (k *keyRecords) sealed(w *wire, row memddb.Item) {
	id := text(row["dek_id"])
	if id == "" {
		return
	}
	if w.used[id] == nil {
		w.used[id] = map[string]bool{}
	}
	w.used[id][fmt.Sprint(row["data"])] = true
	if n := len(w.used[id]); n > maxKeyUses {
		k.r.violated("KeyBounds", "a process has sealed %d rows under data key %s", n, id)
	}
	if r, ok := k.record(id); !ok {
		k.r.violated("NoKeyOrphans", "a row that names data key %s is about to be written, and that has no record", id)
	} else if age := time.Since(r.CreatedAt); age > maxKeyAge+time.Minute {
		k.r.violated("KeyBounds", "a row is sealed under data key %s, which is %s old", id, age)
	}
}

// inserted notes whether a row was inserted under a data key of before the last switch.
func (k *keyRecords) inserted(id string) {
	out, err := k.under.DB.GetItem(ctx, &dynamodb.GetItemInput{TableName: aws.String(rowTable), Key: rowKey(id)})
	k.r.must(err)
	v, err := k.under.plain.Load(ctx, "")
	k.r.must(err)
	epoch, err := attr.Int(out.Item["kek_epoch"])
	k.r.must(err)
	if epoch < v.Pointer.Epoch && text(out.Item["dek_id"]) != "" {
		k.r.overslept[id] = v.Pointer.Epoch
		k.r.tell("row %s is under a data key of epoch %d, and the pointer is at %d", id, epoch, v.Pointer.Epoch)
	}
}

// excuse reports whether a writer may fail so: it slept so long before its record was stored
// that nobody waits for the data key any more, or a record is lost.
func (k *keyRecords) excuse(e *errand, err error) bool {
	return e.unstored && errors.Is(err, context.DeadlineExceeded) || k.isLost(err)
}

// isLost reports whether an error may be that of a record which is lost now.
func (k *keyRecords) isLost(err error) bool {
	return k != nil && len(k.lost) > 0 && errors.Is(err, envelope.ErrUnknownDEK)
}

// everLost reports whether a reader may have met a row whose record was lost.
func (k *keyRecords) everLost() bool { return k != nil && k.losses > 0 }

// befall implements [keyTable].
func (k *keyRecords) befall(f Fault) {
	recorder, _ := k.r.store.(journal.Recorder)
	switch f.Kind {
	case Lose:
		k.r.alone(func() { k.lose(f.Arg == 1) })
	case PutBack:
		k.r.inside(func() { _ = k.r.command(putBack, k.repair) })
	case Convert:
		k.r.inside(func() {
			_ = k.r.command("convert rows", func(c context.Context, s *rotation.Steps) error {
				_, err := s.Convert(context.WithValue(c, toConvert{}, true), recorder, rotation.ConvertInput{Source: rowTable, Write: true})
				return err
			})
		})
	default: // not about keyed rows
	}
}

// lose deletes the record of the data key of the row that everybody updates, or the youngest
// record. There is one mistake in a run, as in the model.
func (k *keyRecords) lose(youngest bool) {
	id := ""
	if youngest {
		id = slices.Max(append(slices.Collect(maps.Keys(k.records())), ""))
	} else {
		out, err := k.under.DB.GetItem(ctx, &dynamodb.GetItemInput{TableName: aws.String(rowTable), Key: rowKey(aRow)})
		k.r.must(err)
		id = text(out.Item["dek_id"])
	}
	if id == "" || k.losses > 0 {
		return
	}
	k.r.atomically(func() {
		if k.recorder != nil {
			k.recorder.Mishap()
		}
		_, err := k.under.DB.DeleteItem(ctx, &dynamodb.DeleteItemInput{TableName: aws.String(deksTable), Key: keyrecord.Key(id)})
		k.r.must(err)
	})
	k.lost[id] = true
	k.losses++
	k.r.check.dirty = true
	k.r.tell("the record of data key %s is deleted", id)
}

// repair implements [keyTable].
func (k *keyRecords) repair(c context.Context, s *rotation.Steps) error {
	_, err := s.PutBackRecords(c, k.r.store, true)
	return err
}

// sweep implements [keyTable]: after an emergency a sweep finds each row that was inserted
// under an exposed data key, and moves it (spec/keyed.tla: Sweep, ExposedEnds).
func (k *keyRecords) sweep() {
	r := k.r
	var last kek.Rotation
	for _, rot := range r.rotations() {
		if rot.Mode == kek.Emergency && rot.Phase == kek.Completed && rot.Epoch > last.Epoch {
			last = rot
		}
	}
	if last.ID == "" || r.failed != nil {
		return
	}
	var exposed int64
	k.under.Each(rowTable, func(i memddb.Item) {
		if epoch, _ := attr.Int(i["kek_epoch"]); text(i["dek_id"]) != "" && epoch < last.Epoch {
			exposed++
		}
	})
	c, err := r.steps.Convert(context.WithValue(ctx, toConvert{}, true), r.store, rotation.ConvertInput{Source: rowTable, Write: true, ExposedBefore: last.Epoch})
	if err != nil || c.Exposed != exposed {
		r.violated("ExposedCounted", "%d rows are under data keys of before epoch %d, a sweep counts %d: %v", exposed, last.Epoch, c.Exposed, err)
	}
	r.check.dirty = true
	r.check.look()
	r.mine = true
	r.check.found(r.check.seen.Exposed(last.ID+" and a sweep", last.Olds, r.want))
}

// atomically makes one effect, and shows the recorder what has changed, if there is one.
func (r *run) atomically(effect func()) {
	k, ok := r.keyed.(*keyRecords)
	if !ok || !k.recording {
		effect()
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	effect()
	s := k.state()
	if k.recorder == nil {
		for _, i := range s.Control {
			if text(i["pk"]) == "POINTER" {
				k.recorder = trace.NewKeyedRecorder(text(i["kek_id"]))
			}
		}
	}
	if k.recorder != nil {
		k.recorder.Look(s)
	}
}

// state is what there is, for the recorder.
func (k *keyRecords) state() trace.KeyedState {
	s := trace.KeyedState{Copies: k.copies, Enabled: map[string]bool{}}
	for table, items := range map[string]*[]map[string]types.AttributeValue{controlTable: &s.Control, deksTable: &s.Keys, rowTable: &s.Rows} {
		k.under.Each(table, func(i memddb.Item) { *items = append(*items, i) })
	}
	for _, i := range s.Control {
		if id, ok := strings.CutPrefix(text(i["pk"]), "KEK#"); ok {
			key, err := k.r.kms.Describe(ctx, kek.ID(id))
			s.Enabled[id] = err == nil && key.Enabled
		}
	}
	for _, key := range k.bucket.Keys(keyrecord.CopyPrefix) {
		if k.copies[key] == nil {
			k.copies[key] = k.read(key)
		}
	}
	return s
}

// read is the text of a copy.
func (k *keyRecords) read(key string) []byte {
	out, err := k.bucket.Bucket.GetObject(ctx, &s3.GetObjectInput{Bucket: aws.String(copyBucket), Key: &key})
	k.r.must(err)
	text, err := io.ReadAll(out.Body)
	k.r.must(err)
	return text
}

// ascending draws the ids of data keys so that they sort in the order in which they are made:
// a scan reads the key table in that order, and a schedule replays. Only what is as long as an
// id is drawn so; a nonce is not.
type ascending struct {
	io.Reader
	turn sync.Mutex
	n    atomic.Int64
}

// Read implements [io.Reader].
func (a *ascending) Read(b []byte) (int, error) {
	if len(b) != 16 {
		return a.Reader.Read(b)
	}
	letters := strings.Map(func(r rune) rune { return r - '0' + 'A' }, fmt.Sprintf("%025d", a.n.Add(1)))
	id, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(letters + "A")
	return copy(b, id), err
}

var drawn = &ascending{Reader: rand.Reader}

// amidKeyed runs a schedule in the world with keyed rows. Runs take turns, so that each draws
// the same ids: the order of copies depends on them.
func amidKeyed(t *testing.T, s Schedule, tell bool) ended {
	t.Helper()
	drawn.turn.Lock()
	defer drawn.turn.Unlock()
	drawn.n.Store(0)
	return amid(t, s, tell, "keyed")
}

// recorded is the world with keyed rows, with a recorder.
const recorded = "recorded"
