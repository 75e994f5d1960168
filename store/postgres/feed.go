package postgres

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// feed follows what is committed, on a connection of its own. Asking for it is
// what counts: a notification only has it asked sooner.
//
// Why no node serves by what a commit has changed when Await of that commit, made
// by any node, has returned:
//
// A poll is one transaction that first writes this node's row and then, by another
// statement, reads the head and what was committed since. When the answer is
// applied, the node may serve until the time at which it SENT the poll, plus its
// lease. So
//
//  1. a poll that is sent after the commit was acknowledged learns of the commit,
//     and lets the node serve only when that is applied;
//  2. what the node may serve by polls that were sent before ends a lease after
//     the commit at the latest.
//
// So to wait for the longest lease would always do. The rows of the nodes let
// Await return earlier: when each node has written that it has applied the commit.
// For this a node that may serve by an older poll must have a row. It has: a poll
// counts only if it found the row there, so the row was committed before the poll
// read the head. It is deleted only by the node itself, when it serves no more, or
// by an Await that has seen it with the same count of polls for a lease: by (2) the
// node does not serve then. If that node is just writing its next poll, either
// the deletion waits for it, and finds another count; or the poll waits for the
// deletion, and finds no row: it does not count, and the node makes another row,
// with a count that none had before.
//
// Where the database goes back to before a commit, as a failover to an asynchronous
// replica does, a node that has applied it finds that out by its number and its id;
// and the node that has made it also when its feed had not come to it yet. Numbers
// begin anew from there, so
//
//   - a row says that a node has applied a commit only in a database that has it;
//   - Await believes what it reads only where the database has the last commit that
//     this node knows of, and afterwards only where it has what was the last one then.
//     Else it waits until the feed has found the loss, and the follower knows of it.
//
// So when Await returns, either the database had this node's commits when all that
// served had applied them, or the follower was told that they are lost.
//
// The lease can be changed. A longer one is first written into the row, and the
// polls after that one let the node serve by it; by a shorter one a poll lets the
// node serve first, and the next one writes it. So while the node serves by a poll,
// the row says that poll's lease or a longer one, whenever it is read:
//
//   - before that poll has written it, and then: a poll lets the node serve for no
//     longer than the least of what the row may have said, and what it says itself.
//     An answer that is lost leaves both open, so both count;
//   - after a later poll has written it, answered or not: none writes less than the
//     lease that the node serves by when the poll is sent. One whose answer was
//     given up, and that is carried out after a later one, finds a higher count of
//     polls, and writes nothing.
//
// Until the database answers, the node serves as before.
//
// A poll is as durable as a commit. So a server that can't reach the replica that
// must have all commits lets no node serve either.
type feed struct {
	settings *settings
	pool     *pgxpool.Pool // what broken connections there may be is forgotten with the feed's own
	features features
	node     uuid.UUID

	// until is when the lease runs out, by clock, and lease is how long that is
	// from the poll.
	until, lease atomic.Int64

	mu      sync.Mutex
	heard   time.Time     // when the last poll that counts was sent
	failure error         // of the last poll
	awaited chan struct{} // has the feed poll soon
	// own are the commits of this node that the feed has not come to yet, in the
	// order of their acknowledgement.
	own     []position
	reached position // the last commit that was applied

	// The goroutine that follows has the rest to itself.
	conn      *pgx.Conn
	by        *Postgres        // what the connection was made by
	listening bool             // it is told of notifications
	sent      time.Duration    // when the last poll was sent, by clock
	hurry     bool             // somebody may be waiting for what this node applies
	hurried   [2]time.Duration // when polls were sent last because of that, the earlier one first
	follower  store.Follower
	applied   int64     // the number of the last commit that was applied
	last      uuid.UUID // its id
	polls     int64
	written   time.Duration // the shortest lease that this node's row may say
	stale     bool          // as was logged
	logged    time.Time     // when a failure was logged last

	stop   context.CancelFunc
	done   sync.WaitGroup
	closed atomic.Bool
}

const (
	channel = "client_credentials"
	notify  = `SELECT pg_notify('` + channel + `', $1)`
	// hurryUp is the notification that somebody waits for all nodes.
	hurryUp = "urgent"
	// maxChanges is how many commits one poll learns of.
	maxChanges = 500
	// nothingYet is what a node has applied that has just been started.
	nothingYet = -1
)

// pollGap is the least time between two polls while nobody waits for them. For those
// who wait there are, within it, two pairs of polls besides: one that learns, and one
// that says so. It is two as who waits may ask for what came just then. A test makes
// it longer.
var pollGap = 20 * time.Millisecond

func newFeed(settings *settings, pool *pgxpool.Pool, features features) *feed {
	f := &feed{
		settings: settings,
		pool:     pool,
		features: features,
		node:     uuid.New(),
		applied:  nothingYet,
		failure:  errors.New("it has not been asked yet"),
		stop:     func() {},
		awaited:  make(chan struct{}, 1),
	}
	f.written = time.Duration(settings.current.Load().Lease)
	f.lease.Store(int64(f.written))
	f.until.Store(math.MinInt64)
	return f
}

// Follow implements store.Shared.
func (d *database) Follow(ctx context.Context, follower store.Follower) error {
	if err := d.enter(ctx); err != nil {
		return err
	}
	defer d.gate.RUnlock()
	return d.feed.follow(ctx, follower)
}

// Stale implements store.Shared.
func (d *database) Stale() error { return d.feed.staleness() }

func (f *feed) follow(ctx context.Context, follower store.Follower) error {
	if f.follower != nil {
		return errors.New("the store is followed already")
	}
	f.follower = follower
	err := persist(ctx, func(ctx context.Context) error {
		for f.until.Load() == math.MinInt64 {
			if _, err := f.poll(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		f.disconnect(ctx)
		return fmt.Errorf("following the store: %w", err)
	}
	ctx, f.stop = context.WithCancel(context.WithoutCancel(ctx)) // it outlives who opens the store
	f.done.Go(func() { f.run(ctx) })
	f.done.Go(func() { f.trimUntil(ctx) })
	return nil
}

func (f *feed) staleness() error {
	if f.closed.Load() {
		return fmt.Errorf("%w: %w", store.ErrStale, store.ErrClosed)
	}
	if int64(clock()) <= f.until.Load() || f.accepts() {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return fmt.Errorf("%w: it has not heard from the database since %s: %w", store.ErrStale, f.heard.Format(time.RFC3339), f.failure)
}

// accepts reports whether what the node knew last counts when its lease has run out.
func (f *feed) accepts() bool { return f.settings.current.Load().OnStale == OnStaleAccept }

// close ends the feed. The node serves no more.
func (f *feed) close() {
	if f.closed.Swap(true) {
		return
	}
	f.stop()
	f.done.Wait()
	if f.conn != nil {
		ctx := context.Background()
		_ = within(ctx, time.Second, func(ctx context.Context) error {
			_, err := f.conn.Exec(ctx, `DELETE FROM client_credentials_nodes WHERE id = $1`, f.node)
			return err
		})
		f.disconnect(ctx)
	}
}

// run polls until ctx is over.
func (f *feed) run(ctx context.Context) {
	pause, backoff := time.Duration(0), time.Duration(0)
	for f.wait(ctx, pause); ctx.Err() == nil; f.wait(ctx, pause) {
		hurry := f.hurry && rest(f.hurried[0]) == 0
		if hurry {
			f.hurry, f.hurried = false, [2]time.Duration{f.hurried[1], clock()}
		}
		settled, err := f.poll(context.WithoutCancel(ctx)) // close needs the connection
		switch {
		case err != nil:
			backoff = min(2*backoff+50*time.Millisecond, time.Second)
			pause = backoff/2 + rand.N(backoff/2) //nolint:gosec // the pause is no secret
			f.failed(err)
			continue
		case settled: // who waits had asked for it before this poll, and is told
			pause, f.hurry = time.Duration(f.lease.Load()/4), false
		case hurry: // who waits is told by the next poll what this one has applied
			pause, f.hurry = 0, false
		case f.hurry: // it has learned of something urgent by chance, or too soon after others
			pause = rest(f.hurried[0])
		default:
			pause = rest(f.sent)
		}
		backoff = 0
	}
}

// rest returns what is left of the gap after a poll.
func rest(sent time.Duration) time.Duration { return max(0, pollGap-(clock()-sent)) }

// wait returns when the pause is over, or before that, but no sooner than the gap
// allows, when somebody has committed, waits for all nodes, or awaits this node's own
// commits. One poll answers all notifications that have come.
func (f *feed) wait(ctx context.Context, pause time.Duration) {
	var waker sync.WaitGroup
	defer waker.Wait() // it must not take what is meant for the next one
	waiting, cancel := context.WithTimeout(ctx, pause)
	defer cancel()
	waker.Go(func() {
		select {
		case <-f.awaited:
			_ = sleep(waiting, rest(f.sent))
			cancel()
		case <-waiting.Done():
		}
	})
	if f.conn == nil || !f.listening {
		_ = sleep(waiting, pause)
		return
	}
	for woken := false; ; {
		notification, err := f.conn.WaitForNotification(waiting) // also one that had come when the pause was over
		switch {
		case err != nil:
			if waiting.Err() == nil { // the connection is lost: the poll makes a new one
				f.disconnect(ctx)
			}
			return
		case notification.Payload == hurryUp && !f.hurry:
			f.hurry = true
			defer time.AfterFunc(rest(f.hurried[0]), cancel).Stop()
		case !woken:
			woken = true
			defer time.AfterFunc(rest(f.sent), cancel).Stop()
		}
	}
}

// poll asks once what was committed, and applies it. It returns true when all is
// applied, and this node's row says so, and what the configured lease is.
func (f *feed) poll(ctx context.Context) (settled bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			logger().Error("panic while following the store", zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
			err = errors.New("following the store has panicked")
		}
		if err != nil {
			f.settle(ctx, err)
		}
	}()
	if err := f.connect(ctx); err != nil {
		return false, err
	}
	lease := time.Duration(f.settings.current.Load().Lease)
	row := max(lease, time.Duration(f.lease.Load()))
	f.written = min(f.written, row)
	own := f.expected() // before the poll, which then can't be too early to learn of them
	sent, at, reported := clock(), time.Now(), position{f.applied, f.last}
	f.sent = sent
	var a answer
	err = within(ctx, min(lease/2, 3*time.Second), func(ctx context.Context) (err error) {
		if a, err = f.ask(ctx, row); err == nil && !a.registered {
			err = f.register(ctx, row)
		}
		return err
	})
	if err != nil || !a.registered {
		return false, err
	}
	if !f.apply(a, own) {
		return false, nil
	}
	serves := min(f.written, lease)
	f.lease.Store(int64(serves))
	f.until.Store(int64(sent + serves))
	f.served(at)
	f.written = row
	return reported == position{f.applied, f.last} && row == serves, nil
}

func (f *feed) connect(ctx context.Context) error {
	p := f.settings.connection.Load()
	if f.conn != nil && p.connectsAs(f.by) {
		return nil
	}
	f.disconnect(ctx)
	return within(ctx, patience, func(ctx context.Context) (err error) {
		if f.conn, err = pgx.ConnectConfig(ctx, p.config.ConnConfig); err != nil {
			return err
		}
		f.by = p
		_, err = f.conn.Exec(ctx, `LISTEN `+channel)
		f.listening = err == nil && f.features.notify
		if err != nil && !f.conn.IsClosed() {
			logger().Debug("the database sends no notifications", zap.Error(err))
			return nil
		}
		return err
	})
}

// settle ends the transaction that a poll has left, and the connection, where that
// or the server at its other end is no good any more.
func (f *feed) settle(ctx context.Context, err error) {
	if f.conn == nil {
		return
	}
	if !f.conn.IsClosed() && !is(err, readOnlyTransaction) && f.conn.PgConn().TxStatus() != 'I' {
		_ = within(ctx, time.Second, func(ctx context.Context) error {
			_, err := f.conn.Exec(ctx, `ROLLBACK`)
			return err
		})
	}
	if f.conn.IsClosed() || is(err, readOnlyTransaction) || f.conn.PgConn().TxStatus() != 'I' {
		f.disconnect(ctx)
	}
}

// disconnect forgets the connection, and those of the pool: what has broken one may
// have broken all.
func (f *feed) disconnect(ctx context.Context) {
	if f.conn == nil {
		return
	}
	_ = within(context.WithoutCancel(ctx), 100*time.Millisecond, f.conn.Close)
	f.conn = nil
	f.pool.Reset()
}

// answer is what a poll learns.
type answer struct {
	registered bool // the poll has found this node's row
	head       int64
	id         uuid.UUID
	changes    []committed // from the last one that was applied on, if there are later ones
}

type committed struct {
	n      int64
	id     uuid.UUID
	keys   []string
	urgent bool
}

func (f *feed) ask(ctx context.Context, lease time.Duration) (a answer, err error) {
	f.polls++
	batch := f.features.begin()
	batch.Queue(`UPDATE client_credentials_nodes SET applied = CASE WHEN `+hasCommit+` THEN $1 ELSE $3 END,
		polls = $4, lease_ms = $5, seen = clock_timestamp() WHERE id = $6 AND polls < $4`,
		f.applied, f.last, nothingYet, f.polls, lease.Milliseconds(), f.node).Exec(func(tag pgconn.CommandTag) error {
		a.registered = tag.RowsAffected() == 1
		return nil
	})
	batch.Queue(`SELECT head.n, head.id, changes.n, changes.id, changes.keys, changes.urgent FROM client_credentials_head head
		LEFT JOIN client_credentials_changes changes ON head.n > $1 AND changes.n >= $1 ORDER BY changes.n LIMIT $2`,
		f.applied, 1+maxChanges).Query(func(rows pgx.Rows) (err error) {
		a.head, a.id, a.changes, err = readChanges(rows)
		return err
	})
	if err := transact(ctx, f.conn, batch); err != nil {
		return answer{}, fmt.Errorf("polling: %w", err)
	}
	return a, nil
}

func readChanges(rows pgx.Rows) (head int64, id uuid.UUID, changes []committed, err error) {
	var n *int64
	var changeID *uuid.UUID
	var keys [][]byte
	var urgent *bool
	tag, err := pgx.ForEachRow(rows, []any{&head, &id, &n, &changeID, &keys, &urgent}, func() error {
		if n == nil {
			return nil
		}
		change := committed{n: *n, id: *changeID, keys: make([]string, len(keys)), urgent: *urgent}
		for n, key := range keys {
			change.keys[n] = string(key)
		}
		changes = append(changes, change)
		return nil
	})
	if err == nil && tag.RowsAffected() == 0 {
		err = errHeadMissing
	}
	return head, id, changes, err
}

var errHeadMissing = errors.New("the database has lost a table's only row: client_credentials_head")

// register makes this node's row anew.
func (f *feed) register(ctx context.Context, lease time.Duration) error {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	_, err = f.conn.Exec(ctx, `INSERT INTO client_credentials_nodes (id, applied, polls, lease_ms, host, seen)
		VALUES ($1, $2, $3, $4, $5, clock_timestamp())`, f.node, nothingYet, f.polls, lease.Milliseconds(), host)
	if err != nil {
		return fmt.Errorf("registering this node: %w", err)
	}
	return nil
}

// apply tells the follower what the answer says, and returns whether that is all
// that was committed. Of this node's own commits, those are given that were
// acknowledged before the poll.
func (f *feed) apply(a answer, own []position) (complete bool) {
	followed := f.applied != nothingYet
	switch {
	case followed && (a.older(position{f.applied, f.last}) || a.lacks(own, f.applied)):
		logger().Error("the database was replaced by another copy of itself", zap.Int64("known", f.applied), zap.Int64("found", a.head))
		f.follower.ChangedAnything(true)
		f.applied, f.last = a.head, a.id
		f.lost(len(own), position{f.applied, f.last})
		return true
	case !followed:
		f.applied, f.last, complete = a.head, a.id, true
	case a.head == f.applied:
		complete = true
	case len(a.changes) == 0, a.changes[0].n != f.applied:
		logger().Warn("changes are not kept any more that this node has missed", zap.Int64("known", f.applied), zap.Int64("found", a.head))
		f.follower.ChangedAnything(false)
		f.applied, f.last, complete = a.head, a.id, true
	default:
		complete = f.applyEach(a)
	}
	f.came(len(own), position{f.applied, f.last})
	return complete
}

// older reports whether the database does not have the last commit that was applied.
func (a answer) older(last position) bool {
	if a.head == last.n {
		return a.id != last.id
	}
	return a.head < last.n || len(a.changes) > 0 && a.changes[0].n == last.n && a.changes[0].id != last.id
}

func (f *feed) applyEach(a answer) bool {
	for _, change := range a.changes[1:] {
		if change.n != f.applied+1 { // never, unless somebody has deleted it by hand
			f.follower.ChangedAnything(false)
			f.applied, f.last = a.head, a.id
			return true
		}
		f.hurry = f.hurry || change.urgent
		f.follower.Changed(change.keys, change.urgent)
		f.applied, f.last = change.n, change.id
	}
	return f.applied == a.head
}

// served notes that the node may serve.
func (f *feed) served(at time.Time) {
	f.mu.Lock()
	f.heard = at
	f.mu.Unlock()
	if f.stale {
		logger().Info("this node hears from the database again")
	}
	f.stale, f.logged = false, time.Time{}
}

// failed notes why a poll has failed.
func (f *feed) failed(err error) {
	f.mu.Lock()
	f.failure = err
	heard := f.heard
	f.mu.Unlock()
	if now := time.Now(); now.Sub(f.logged) > 10*time.Second {
		logger().Warn("asking the database what has changed has failed", zap.Error(err))
		f.logged = now
	}
	if !f.stale && int64(clock()) > f.until.Load() {
		f.stale = true
		logger().Error("this node has not heard from the database for a lease", zap.Time("since", heard),
			zap.Bool("accepts_tokens", f.accepts()), zap.Error(err))
	}
}
