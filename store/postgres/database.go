package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// database is an open database.
//
// The gate is held for reading by every operation and for writing by Close.
type database struct {
	gate     sync.RWMutex
	closed   bool
	pool     *pgxpool.Pool
	features features
	scans    chan struct{} // has a place for each scan that holds a connection
	feed     *feed
	settings *settings
}

func newDatabase(settings *settings, pool *pgxpool.Pool, features features) *database {
	d := &database{
		pool:     pool,
		features: features,
		scans:    make(chan struct{}, max(1, pool.Config().MaxConns/2)),
		feed:     newFeed(settings, pool, features),
		settings: settings,
	}
	metrics.add(d)
	return d
}

const (
	// patience is how long one step of an operation may take.
	patience = 5 * time.Second
	// firstPage and page are how many records a scan reads at a time.
	firstPage = 100
	page      = 500
)

// Get implements store.Store.
func (d *database) Get(ctx context.Context, key string) (value []byte, err error) {
	if err := d.enter(ctx); err != nil {
		return nil, err
	}
	defer d.gate.RUnlock()

	err = d.retry(ctx, func() error {
		return d.connected(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
			value, err = read(ctx, conn, key)
			return err
		})
	})
	return value, err
}

func read(ctx context.Context, conn *pgxpool.Conn, key string) ([]byte, error) {
	var sealed []byte
	err := conn.QueryRow(ctx, `SELECT value FROM client_credentials_records WHERE key = $1`, []byte(key)).Scan(&sealed)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, store.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", key, err)
	}
	return store.Unseal([]byte(key), sealed)
}

// Scan implements store.Store.
func (d *database) Scan(ctx context.Context, prefix string, fn func(key string, value []byte) error) error {
	return d.ScanFrom(ctx, prefix, prefix, fn)
}

// ScanFrom implements store.Store. What fits one page is read by one statement,
// which is a view by itself, and passed to fn when the connection is free again.
func (d *database) ScanFrom(ctx context.Context, prefix, from string, fn func(key string, value []byte) error) error {
	if err := d.enter(ctx); err != nil {
		return err
	}
	defer d.gate.RUnlock()

	rest := keyRange{[]byte(max(from, prefix)), successor([]byte(prefix))}
	var records []sealedRecord
	err := d.retry(ctx, func() error {
		return d.connected(ctx, func(ctx context.Context, conn *pgxpool.Conn) (err error) {
			records, err = rest.read(ctx, conn, firstPage)
			return err
		})
	})
	if err != nil {
		return err
	}
	if len(records) < firstPage {
		return pass(ctx, records, fn)
	}
	return d.scanPages(ctx, rest, fn)
}

// scanPages reads all of the range in one transaction. Not all connections can be
// held by scans: fn may take its time.
func (d *database) scanPages(ctx context.Context, rest keyRange, fn func(key string, value []byte) error) error {
	select {
	case d.scans <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-d.scans }()
	conn, err := d.acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release() // which closes one that has not ended its transaction
	if err := step(ctx, func(ctx context.Context) error {
		_, err := conn.Exec(ctx, `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`)
		return err
	}); err != nil {
		return fmt.Errorf("reading records: %w", err)
	}
	for limit := firstPage; ; limit = page {
		var records []sealedRecord
		if err := step(ctx, func(ctx context.Context) (err error) {
			records, err = rest.read(ctx, conn, limit)
			return err
		}); err != nil {
			return err
		}
		if err := pass(ctx, records, fn); err != nil {
			rollBack(ctx, conn)
			return err
		}
		if len(records) < limit {
			rollBack(ctx, conn)
			return nil
		}
		rest.from = append(records[limit-1].key, 0)
	}
}

type sealedRecord struct{ key, value []byte }

func pass(ctx context.Context, records []sealedRecord, fn func(key string, value []byte) error) error {
	for _, record := range records {
		if err := ctx.Err(); err != nil {
			return err
		}
		value, err := store.Unseal(record.key, record.value)
		if err != nil {
			return err
		}
		if err := fn(string(record.key), value); err != nil {
			return err
		}
	}
	return nil
}

// keyRange is of the keys that do not sort before from, and sort before to. A to
// that is nil is behind all keys.
type keyRange struct{ from, to []byte }

func (r keyRange) read(ctx context.Context, conn *pgxpool.Conn, limit int) ([]sealedRecord, error) {
	rows, err := conn.Query(ctx, `SELECT key, value FROM client_credentials_records
		WHERE key >= $1 AND ($2::bytea IS NULL OR key < $2) ORDER BY key LIMIT $3`, r.from, r.to, limit)
	if err != nil {
		return nil, fmt.Errorf("reading records: %w", err)
	}
	records, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (record sealedRecord, err error) {
		err = row.Scan(&record.key, &record.value)
		return record, err
	})
	if err != nil {
		return nil, fmt.Errorf("reading records: %w", err)
	}
	return records, nil
}

// successor returns the first key behind all those with the prefix, or nil.
func successor(prefix []byte) []byte {
	for n := len(prefix) - 1; n >= 0; n-- {
		if prefix[n] != 0xff {
			next := bytes.Clone(prefix[:n+1])
			next[n]++
			return next
		}
	}
	return nil
}

// Close implements store.Store.
func (d *database) Close() error {
	d.gate.Lock()
	closed := d.closed
	d.closed = true
	d.gate.Unlock() // the follower may be about to enter, and the feed waits for it
	if closed {
		return nil
	}
	metrics.remove(d)
	d.feed.close()
	d.pool.Close()
	return nil
}

// enter holds the gate where it returns nil.
func (d *database) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d.gate.RLock()
	if d.closed {
		d.gate.RUnlock()
		return store.ErrClosed
	}
	return nil
}

// connected does one step with a connection.
func (d *database) connected(ctx context.Context, do func(ctx context.Context, conn *pgxpool.Conn) error) error {
	conn, err := d.acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	err = step(ctx, func(ctx context.Context) error { return do(ctx, conn) })
	if is(err, readOnlyTransaction) {
		_ = conn.Conn().Close(ctx) // with a server that is the primary no more
	}
	var open undecided
	if err != nil && conn.Conn().IsClosed() && !errors.As(err, &open) {
		return lostConnection{err}
	}
	return err
}

func (d *database) acquire(ctx context.Context) (conn *pgxpool.Conn, err error) {
	err = within(ctx, patience, func(ctx context.Context) error {
		conn, err = d.pool.Acquire(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connecting to the database: %w", err)
	}
	return conn, nil
}

// step does what should not be broken off in the middle because nobody waits for
// it any more: that would cost the connection, and it takes patience at most.
func step(ctx context.Context, do func(context.Context) error) error {
	return within(context.WithoutCancel(ctx), patience, do)
}

func within(ctx context.Context, limit time.Duration, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return do(ctx)
}

func rollBack(ctx context.Context, conn *pgxpool.Conn) {
	_ = step(ctx, func(ctx context.Context) error {
		_, err := conn.Exec(ctx, `ROLLBACK`)
		return err
	})
}

// lostConnection is the error of a step that ended with its connection, and has
// changed nothing.
type lostConnection struct{ error }

func (e lostConnection) Unwrap() error { return e.error }

// retry does again what has changed nothing and can succeed when it is done again:
// where transactions stood in each other's way, for as long as patience lasts;
// where a connection was lost, once, as the others of the pool may be as old.
func (d *database) retry(ctx context.Context, do func() error) error {
	deadline := time.Now().Add(patience)
	lost := false
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		err := do()
		var broken lostConnection
		switch {
		case is(err, serializationFailure, deadlockDetected) && time.Now().Before(deadline):
		case errors.As(err, &broken) && !lost:
			lost = true
			d.pool.Reset()
		default:
			return err
		}
		if err := sleep(ctx, pause/2+rand.N(pause)); err != nil { //nolint:gosec // the pause is no secret
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// warning is where a connection keeps the last warning of the server.
const warning = "warning"

func noteWarning(conn *pgconn.PgConn, notice *pgconn.Notice) {
	if notice.SeverityUnlocalized == "WARNING" {
		conn.CustomData()[warning] = notice.Message
	}
}

// transact sends a batch that ends with COMMIT. A warning is an error: when the
// server gives up waiting for the replica that must have a commit too, it says no
// more than that.
func transact(ctx context.Context, conn *pgx.Conn, batch *pgx.Batch) error {
	batch.Queue(`COMMIT`).Exec(func(tag pgconn.CommandTag) error {
		if tag.String() != "COMMIT" {
			return errors.New("the database did not commit")
		}
		return nil
	})
	delete(conn.PgConn().CustomData(), warning)
	if err := conn.SendBatch(ctx, batch).Close(); err != nil {
		return err
	}
	if text := conn.PgConn().CustomData()[warning]; text != nil {
		return fmt.Errorf("the database has committed with a warning: %s", text)
	}
	return nil
}

// Interface guards
var _ store.Shared = (*database)(nil)
