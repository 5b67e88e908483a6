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

// KMS is what the client uses of the KMS client.
type KMS interface {
	GenerateDataKey(context.Context, *kms.GenerateDataKeyInput, ...func(*kms.Options)) (*kms.GenerateDataKeyOutput, error)
	Decrypt(context.Context, *kms.DecryptInput, ...func(*kms.Options)) (*kms.DecryptOutput, error)
}

// DynamoDB is what the client uses of the DynamoDB client.
type DynamoDB interface {
	ControlAPI
	TableAPI
}

// Config says where a client finds its deployment. ControlTable, DynamoDB and KMS
// are required.
type Config struct {
	ControlTable string // name of the control table, output ControlTableName of the stack
	DynamoDB     DynamoDB
	KMS          KMS
	Cache        Cache
	Holder       string           // name of this process in its leases, unique; default made from host and pid
	PointerAge   time.Duration    // how old the pointer may be; default 10 s
	LeaseTTL     time.Duration    // how long a rotation waits for this process if it dies; default 60 s, at most 10 min
	Now          func() time.Time // default time.Now

	// Random draws a number from [0, n), for what spreads load and is no secret:
	// jitter and the choice of a fence shard. Default math/rand/v2; a test that must
	// replay gives its own. Keys and nonces never come from it.
	Random func(n int64) int64
}

const (
	defaultPointerAge = 10 * time.Second
	defaultLeaseTTL   = time.Minute
	closeTimeout      = 5 * time.Second // to give leases back
	retryPointer      = time.Second     // after a read of it failed
	maxTries          = 10              // of a write that is refused
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
	return c, errors.Join(faults...)
}

// Client seals and opens under the deployment's KEKs. It is safe for concurrent
// use; a process needs one.
type Client struct {
	cfg     Config
	control control
	me      controltable.Lease // holder, host and pid of every lease
	count   counters

	current atomic.Pointer[hold]
	fresh   atomic.Int64 // when the pointer was last read, on the client's clock
	started time.Time
	opening *cache // DEKs by KEK, wrapped DEK and encryption context

	reading chan struct{} // held while the pointer is read, so that readers share one call
	retryAt time.Duration // guarded by reading: not before, after a failure

	mu    sync.Mutex
	holds []*hold           // every KEK this process has a lease on; current among them
	known map[kek.ID]entry  // KEKs that rows may name, or that were retired
	marks map[string]marked // tables that this client has marked

	wake   chan struct{} // a superseded hold is idle
	cancel context.CancelFunc
	done   chan struct{}
	closed atomic.Bool
}

// New reads the pointer, takes a lease on its KEK and keeps both fresh in the
// background until [Client.Close]. ctx bounds New alone.
func New(ctx context.Context, cfg Config) (*Client, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	return newClient(ctx, cfg, &controltable.Client{DynamoDB: cfg.DynamoDB, Table: cfg.ControlTable})
}

func newClient(ctx context.Context, cfg Config, table control) (*Client, error) {
	c := &Client{
		cfg: cfg, control: table, me: holder(cfg.Holder), started: cfg.clock(), opening: newCache(cfg.Cache),
		reading: make(chan struct{}, 1), known: map[kek.ID]entry{}, marks: map[string]marked{},
		wake: make(chan struct{}, 1), done: make(chan struct{}),
	}
	if err := c.refresh(ctx, nil); err != nil {
		return nil, fmt.Errorf("envelope: %w", err)
	}
	background, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.cancel = cancel
	go c.keep(background)
	return c, nil
}

// clock is the time of day.
func (c Config) clock() time.Time {
	if c.Now == nil {
		return time.Now() //nolint:forbidigo // an application's clock, unless it injects one
	}
	return c.Now()
}

// holder names this process. The random part tells apart two clients of one
// process and two processes that a container runtime gives the same pid.
func holder(name string) controltable.Lease {
	host, _ := os.Hostname() // "" is fine, it only helps a person
	l := controltable.Lease{Holder: name, Host: host, PID: os.Getpid()}
	if name == "" {
		l.Holder = fmt.Sprintf("%s-%d-%s", host, l.PID, cryptorand.Text()[:8])
	}
	return l
}

// Close stops the background work, gives the leases back and forgets every key.
// References must have ended. It may be called more than once.
func (c *Client) Close() error {
	c.closed.Store(true)
	c.cancel()
	<-c.done
	c.opening.drop(true)
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	c.reading <- struct{}{} // whoever reads the pointer now has put its lease
	c.mu.Lock()
	holds := c.holds
	c.holds = nil
	c.mu.Unlock()
	<-c.reading
	var faults []error
	for _, h := range holds {
		h.sealing.drop(true)
		faults = append(faults, c.control.DropLease(ctx, c.lease(h)))
	}
	return errors.Join(faults...)
}

// Ref is a reference to the KEK that was current at [Client.Begin]. It counts as
// in flight, which a rotation's drain waits for, until [Ref.End]. What is sealed
// with it should be written before it ends.
type Ref struct {
	c     *Client
	h     *hold
	at    time.Duration // when it was taken, on the client's clock
	ended atomic.Bool
}

// Begin takes a reference to the current KEK. Unless the background work has
// fallen behind (a frozen Lambda, a paused process), it calls nothing.
func (c *Client) Begin(ctx context.Context) (*Ref, error) {
	h, at, err := c.begin(ctx)
	if err != nil {
		return nil, err
	}
	return &Ref{c: c, h: h, at: at}, nil
}

// End drops the reference. More calls do nothing.
func (r *Ref) End() {
	if !r.ended.Swap(true) {
		r.c.release(r.h)
	}
}

// KEK is the id of the KEK that is referred to.
func (r *Ref) KEK() kek.ID { return r.h.pointer.KEKID }

// Epoch is the pointer's epoch that the reference was taken in.
func (r *Ref) Epoch() int64 { return r.h.pointer.Epoch }

func (c *Client) begin(ctx context.Context) (*hold, time.Duration, error) {
	for {
		if c.closed.Load() {
			return nil, 0, ErrClosed
		}
		now := c.elapsed()
		if c.age(now) > c.cfg.PointerAge {
			if err := c.catchUp(ctx); err != nil {
				return nil, 0, err
			}
		}
		h := c.current.Load()
		h.refs.Add(1)
		if c.current.Load() == h { // else the keeper may have dropped its lease already
			return h, now, nil
		}
		c.release(h)
	}
}

// release wakes the keeper when the last reference to a superseded KEK is gone,
// so that drain need not wait for the next renewal.
func (c *Client) release(h *hold) {
	if h.refs.Add(-1) == 0 && c.current.Load() != h {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
}

// age is how long before now the pointer was read.
func (c *Client) age(now time.Duration) time.Duration {
	return now - time.Duration(c.fresh.Load())
}

// elapsed is the client's clock: the time since it was made. Every Begin reads it,
// and the monotonic clock alone is read in half the time.
func (c *Client) elapsed() time.Duration {
	if c.cfg.Now == nil {
		return time.Since(c.started)
	}
	return c.cfg.Now().Sub(c.started)
}
