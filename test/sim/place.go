package sim

import (
	"context"
	"time"

	"github.com/matter-ops/kms-rotation/audit"
	"github.com/matter-ops/kms-rotation/kek"
	"github.com/matter-ops/kms-rotation/rotation"
	"github.com/matter-ops/kms-rotation/rotation/anchor"
	"github.com/matter-ops/kms-rotation/rotation/doctor"
	"github.com/matter-ops/kms-rotation/rotation/journal"
	"github.com/matter-ops/kms-rotation/rotation/keyring"
	"github.com/matter-ops/kms-rotation/source"
	"github.com/matter-ops/kms-rotation/test/memstore"
)

// place is where a run takes place. The first is memstore alone; in the second the
// real adapters and the real client of package envelope run on a DynamoDB in memory.
// KMS and the bucket are memstore's in both.
type place struct {
	world    *memstore.World
	store    store
	table    rows // the source that there always is
	late     rows // a table that is a source when a person makes it one
	vault    journal.AuditBucket
	keys     keyService
	start    string                // the cursor of a page before the first row
	resolves func(kek.ID) bool     // as [memstore.World.Resolves]
	sleep    func(d time.Duration) // lets time go by
	items    doctor.Items          // the control table, item by item; nil: doctor does not run here
	recover  func(back int)        // sets the control table back by so many transactions; nil: there are no backups here
	anchors  func() *anchor.Anchor
	keyed    keyTable // the key table; nil: rows are embedded
	watch    func()   // from now on the schedule decides about every call, and the checker sees every effect
}

// store is the control table, for the steps and for the checker.
type store interface {
	journal.Registry
	journal.Outbox
	rotation.Drainage
	rotation.Checkpoints
	rotation.Archive
	journal.Recorder
	KEKs(ctx context.Context) ([]kek.KEK, error)
	Rotations(ctx context.Context) ([]kek.Rotation, error)
	AuditEntries(ctx context.Context, fromSeq int64) ([]audit.Entry, error)
	Fences(id kek.ID) map[int]string
}

// rows are the table of rows, for the steps, the checker, and who writes without
// sealing.
type rows interface {
	source.Driver
	source.Labeler
	Delete(ctx context.Context, id string) error
	Plant(id string, r memstore.Record)
	Each(f func(id string, r memstore.Record))
}

// keyService is KMS.
type keyService interface {
	keyring.Admin
	keyring.Wrapper
}

// apps are the applications: two that write, and a reader.
type apps interface {
	start()
	busy(n int) bool
	// begin lets application n seal a row and fall asleep before it writes it.
	begin(n int, what task)
	// finish lets it write what it holds.
	finish(n int)
	look()
	open()
	// join lets a new application write its first row into the late table.
	join(id string)
	paged() // an operator is looking at why the rotation has halted
	clone(of *actors) apps
}

// keyTable has the data keys of keyed rows.
type keyTable interface {
	source() kek.Source
	// open opens the source of a definition: the key table, or rows as those of a driver
	// that knows keyed ones.
	open(def kek.Source, rows *scheduledSource) source.Driver
	// check holds the records to what is promised of them.
	check()
	befall(f Fault)
	// repair puts records back that are lost.
	repair(ctx context.Context, s *rotation.Steps) error
	// sweep moves rows off exposed data keys, when all is over.
	sweep()
}

// inMemory is the place that is memstore alone.
func (r *run) inMemory(world *memstore.World, table, late *memstore.Table) place {
	return place{
		world: world, store: world.Store(), table: table, late: late, vault: world.Vault(), keys: world.KMS(),
		start: "after:!", resolves: world.Resolves, sleep: func(d time.Duration) { r.now = r.now.Add(d) },
		watch: func() {
			world.SetHook(r.hook)
			world.SetObserver(func(_, op string, result any, err error, args ...any) { r.check.observe(op, result, err, args...) })
		},
	}
}
