package envelope

import (
	"context"
	cryptorand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/kms"

	"github.com/matter-ops/kms-rotation/internal/controltable"
	"github.com/matter-ops/kms-rotation/kek"
)

// KMS is the part of the KMS client that this package uses.
type KMS interface {
	GenerateDataKey(context.Context, *kms.GenerateDataKeyInput, ...func(*kms.Options)) (*kms.GenerateDataKeyOutput, error)
	Decrypt(context.Context, *kms.DecryptInput, ...func(*kms.Options)) (*kms.DecryptOutput, error)
}

// DynamoDB is the part of the DynamoDB client that this package uses.
type DynamoDB interface {
	ControlAPI
	TableAPI
}

// Config configures a client. ControlTable, DynamoDB and KMS are required.
type Config struct {
	ControlTable string // name of the control table, output ControlTableName of the stack
	DynamoDB     DynamoDB
	KMS          KMS
	Keys         *KeyTable // required for tables with keyed rows
	Cache        Cache
	Holder       string           // name of this process in its leases, unique; default made from host and pid
	PointerAge   time.Duration    // age at which the pointer is read again; default 10 s
	LeaseTTL     time.Duration    // how long a rotation waits for this process if it dies; default 60 s, at most 10 min
	Now          func() time.Time // default time.Now

	// Random returns a number in [0, n). It spreads load: it chooses jitter and fence
	// shards, never keys or nonces. Default math/rand/v2; a test that must be
	// reproducible sets its own.
	Random func(n int64) int64
}

const (
	defaultPointerAge = 10 * time.Second
	defaultLeaseTTL   = time.Minute
	closeTimeout      = 5 * time.Second // to return leases
	retryPointer      = time.Second     // wait after a failed read of the pointer
	maxTries          = 10              // of a refused write
)

func (c Config) withDefaults() (Config, error) {
	var faults []error
	if c.ControlTable == "" {
		faults = append(faults, errors.New("ControlTable is required"))
	}
	if c.DynamoDB == nil {
		faults = append(faults, errors.New("DynamoDB is required"))
	}
	if c.KMS == nil {
		faults = append(faults, errors.New("KMS is required"))
	}
	if c.PointerAge <= 0 {
		c.PointerAge = defaultPointerAge
	}
	if c.LeaseTTL <= 0 {
		c.LeaseTTL = defaultLeaseTTL
	}
	if c.LeaseTTL > kek.MaxLease {
		faults = append(faults, fmt.Errorf("LeaseTTL must be at most %s: a rotation waits that long for a process that died", kek.MaxLease))
	}
	if c.LeaseTTL < 2*c.PointerAge {
		faults = append(faults, errors.New("LeaseTTL must be at least twice PointerAge: a lease is renewed when the pointer is read"))
	}
	if c.Random == nil {
		c.Random = rand.Int64N
	}
	c.Cache = c.Cache.withDefaults()
	if c.Keys != nil {
		keys, err := c.Keys.withDefaults()
		c.Keys = &keys
		faults = append(faults, err)
	}
	return c, errors.Join(faults...)
}

// Client seals and opens under the deployment's KEKs. It is safe for concurrent
// use; a process needs one.
type Client struct {
	cfg      Config
	control  control
	identity controltable.Lease // holder, host and pid of every lease
	count    counters

	current atomic.Pointer[heldLease]
	fresh   atomic.Int64 // when the pointer was last read, on the client's clock
	started time.Time
	opening *cache // DEKs for reading, by KEK, wrapped DEK and encryption context, or by id
	keyed   *keySupply

	reading chan struct{} // a lock on reading the pointer, so that callers share one read
	retryAt time.Duration // guarded by reading: after a failure, no read before this time

	mu     sync.Mutex
	leases []*heldLease         // every KEK this process has a lease on; current among them
	known  map[kek.ID]knownKEK  // KEKs that rows may name, or that were retired
	marks  map[string]tableMark // tables that this client has marked

	wake   chan struct{} // wakes the background work: a superseded lease has no references
	cancel context.CancelFunc
	done   chan struct{}
	closed atomic.Bool
}

// New reads the pointer, takes a lease on its KEK and keeps both current in the
// background until [Client.Close]. ctx bounds only New itself.
func New(ctx context.Context, cfg Config) (*Client, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	return newClient(ctx, cfg, &controltable.Client{DynamoDB: cfg.DynamoDB, Table: cfg.ControlTable})
}

// newClient is [New] with the control table as an interface, for tests.
func newClient(ctx context.Context, cfg Config, table control) (*Client, error) {
	c := &Client{
		cfg: cfg, control: table, identity: newIdentity(cfg.Holder), started: cfg.wallClock(), opening: newCache(cfg.Cache),
		reading: make(chan struct{}, 1), known: map[kek.ID]knownKEK{}, marks: map[string]tableMark{},
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	if cfg.Keys != nil {
		c.keyed = newKeySupply(*cfg.Keys, cfg.Cache, &c.count.hits, c.createKey)
	}
	if err := c.refreshPointer(ctx, nil); err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.cancel = cancel
	go c.runBackground(background)
	return c, nil
}

// wallClock returns the time of day, for times that other processes read.
func (c Config) wallClock() time.Time {
	if c.Now == nil {
		return time.Now() //nolint:forbidigo // an application's clock, unless it injects one
	}
	return c.Now()
}

// newIdentity returns the fields that name this process in its leases. The random part
// separates two clients of one process, and two containers with the same host and pid.
func newIdentity(name string) controltable.Lease {
	host, _ := os.Hostname() // "" is fine, it only helps a person
	l := controltable.Lease{Holder: name, Host: host, PID: os.Getpid()}
	if name == "" {
		l.Holder = fmt.Sprintf("%s-%d-%s", host, l.PID, cryptorand.Text()[:8])
	}
	return l
}

// Close stops the background work, returns the leases and drops every key. References must
// have ended. It may be called more than once.
func (c *Client) Close() error {
	c.closed.Store(true)
	c.cancel()
	<-c.done
	c.opening.dropAll(true)
	c.keyed.close()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	c.reading <- struct{}{} // waits for a running read of the pointer, which may add a lease
	c.mu.Lock()
	holds := c.leases
	c.leases = nil
	c.mu.Unlock()
	<-c.reading
	var faults []error
	for _, h := range holds {
		h.sealing.dropAll(true)
		faults = append(faults, c.control.DropLease(ctx, c.leaseItem(h)))
	}
	return errors.Join(faults...)
}

// Ref is a reference to the KEK that was current at [Client.Begin]. Until [Ref.End] it
// counts as in flight, and a rotation's drain waits for it. Write what was sealed with it
// before it ends.
type Ref struct {
	c     *Client
	h     *heldLease
	at    time.Duration // when it was taken, on the client's clock
	ended atomic.Bool
}

// Begin takes a reference to the current KEK. It makes no call, unless the process was
// paused (a frozen Lambda) and the pointer is too old. The errors are [ErrClosed] and
// [ErrStalePointer].
func (c *Client) Begin(ctx context.Context) (*Ref, error) {
	r := &Ref{c: c} // on the caller's stack: Begin is so short that it is inlined
	return r.begin(ctx)
}

// begin takes the reference, and returns it.
func (r *Ref) begin(ctx context.Context) (*Ref, error) {
	var err error
	if r.h, r.at, err = r.c.beginRef(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

// End ends the reference. Further calls do nothing.
func (r *Ref) End() {
	if !r.ended.Swap(true) {
		r.c.releaseRef(r.h)
	}
}

// KEK returns the id of the KEK.
func (r *Ref) KEK() kek.ID { return r.h.pointer.KEKID }

// Epoch returns the pointer's epoch at the time of [Client.Begin].
func (r *Ref) Epoch() int64 { return r.h.pointer.Epoch }

// beginRef takes a reference to the current lease, and returns the time at which it did. A
// lease that is superseded in between may be returned already, so it checks again.
func (c *Client) beginRef(ctx context.Context) (*heldLease, time.Duration, error) {
	for {
		if c.closed.Load() {
			return nil, 0, ErrClosed
		}
		now := c.elapsedTime()
		if c.pointerAge(now) > c.cfg.PointerAge {
			if err := c.refreshStalePointer(ctx); err != nil {
				return nil, 0, err
			}
		}
		h := c.current.Load()
		h.refs.Add(1)
		if c.current.Load() == h { // else its lease may have been returned already
			return h, now, nil
		}
		c.releaseRef(h)
	}
}

// releaseRef ends a reference. After the last one to a superseded KEK it wakes the
// background work, which returns the lease, so that drain need not wait for the next
// renewal.
func (c *Client) releaseRef(h *heldLease) {
	if h.refs.Add(-1) == 0 && c.current.Load() != h {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// pointerAge returns how long before now the pointer was read.
func (c *Client) pointerAge(now time.Duration) time.Duration {
	return now - time.Duration(c.fresh.Load())
}

// elapsedTime returns the client's clock: the time since it was made. Every Begin reads
// it; the monotonic clock takes half the time of [time.Now] to read, and is never set.
func (c *Client) elapsedTime() time.Duration {
	if c.cfg.Now == nil {
		return time.Since(c.started)
	}
	return c.cfg.Now().Sub(c.started)
}
