package postgres

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// Commit implements store.Store. It takes two round trips: the first locks the
// head, so that from there on nobody else commits, and reads what the conditions
// are about; the second writes and commits. Where the connection is lost in the
// second, the error does not tell whether the batch was carried out; the feed does.
func (d *database) Commit(ctx context.Context, batch store.Batch) error {
	if err := d.enter(ctx); err != nil {
		return err
	}
	defer d.gate.RUnlock()

	c := newChange(batch)
	err := d.retry(ctx, func() error { return d.carryOut(ctx, c) })
	if is(err, diskFull) {
		return fmt.Errorf("%w: %w", store.ErrFull, err)
	}
	return err
}

// change is a batch as the statements take it.
type change struct {
	conditions   []store.Condition
	conditional  [][]byte // keys
	puts, values [][]byte
	deletes      [][]byte
	changed      [][]byte // keys
	urgent       bool
	quiet        bool
}

func newChange(batch store.Batch) change {
	c := change{conditions: batch.Conditions, deletes: [][]byte{}, quiet: batch.Quiet && !batch.Urgent}
	c.urgent = batch.Urgent && len(batch.Puts) > 0 // nobody waits for what is only removed

	values := make(map[string][]byte, len(batch.Puts)) // the last one of a key counts
	for _, record := range batch.Puts {
		values[record.Key] = store.Seal(record)
	}
	for _, key := range batch.Deletes { // which come after all puts
		c.deletes = append(c.deletes, []byte(key))
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		c.puts, c.values = append(c.puts, []byte(key)), append(c.values, values[key])
	}
	for _, condition := range batch.Conditions {
		c.conditional = append(c.conditional, []byte(condition.Key))
	}
	c.changed = slices.Concat(c.puts, c.deletes)
	return c
}

// carryOut tries it once.
func (d *database) carryOut(ctx context.Context, c change) error {
	return d.connected(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		id := uuid.New()
		n, err := d.begin(ctx, conn, c, id)
		if err != nil || len(c.changed) == 0 {
			rollBack(ctx, conn)
			return err
		}
		err = step(ctx, func(ctx context.Context) error { return d.write(ctx, conn, c, n, id) })
		switch {
		case err == nil:
			d.feed.expect(position{n, id})
			return nil
		case conn.Conn().IsClosed():
			return undecided{err}
		}
		rollBack(ctx, conn)
		return err
	})
}

// undecided is the error of a commit that the database may have carried out.
type undecided struct{ error }

func (e undecided) Error() string {
	return "the connection to the database was lost while it committed: " + e.error.Error()
}

func (e undecided) Unwrap() error { return e.error }

// begin returns the number that the commit gets, or an error where a condition
// does not hold. Each statement sees what was committed before it: those who held
// the lock before are done.
func (d *database) begin(ctx context.Context, conn *pgxpool.Conn, c change, id uuid.UUID) (n int64, err error) {
	batch := d.features.begin()
	batch.Queue(`UPDATE client_credentials_head SET n = n + 1, id = $1 RETURNING n`, id).QueryRow(func(row pgx.Row) error {
		return row.Scan(&n)
	})
	found := make(map[string][]byte, len(c.conditions))
	batch.Queue(`SELECT key, value FROM client_credentials_records WHERE key = ANY($1)`, c.conditional).Query(func(rows pgx.Rows) error {
		var key, sealed []byte
		_, err := pgx.ForEachRow(rows, []any{&key, &sealed}, func() error {
			value, err := store.Unseal(key, sealed)
			found[string(key)] = value
			return err
		})
		return err
	})
	if err := conn.SendBatch(ctx, batch).Close(); err != nil {
		return 0, fmt.Errorf("beginning to commit: %w", err)
	}
	for _, condition := range c.conditions {
		value, exists := found[condition.Key]
		if exists != (condition.Value != nil) || !bytes.Equal(value, condition.Value) {
			return 0, store.ErrConflict
		}
	}
	return n, nil
}

func (d *database) write(ctx context.Context, conn *pgxpool.Conn, c change, n int64, id uuid.UUID) error {
	batch := new(pgx.Batch)
	if len(c.puts) > 0 {
		batch.Queue(`INSERT INTO client_credentials_records (key, value) SELECT * FROM unnest($1::bytea[], $2::bytea[])
			ON CONFLICT (key) DO UPDATE SET value = excluded.value`, c.puts, c.values)
	}
	if len(c.deletes) > 0 {
		batch.Queue(`DELETE FROM client_credentials_records WHERE key = ANY($1)`, c.deletes)
	}
	told := c.changed
	if c.quiet { // the others come to it by their next poll
		told = [][]byte{}
	}
	batch.Queue(`INSERT INTO client_credentials_changes (n, id, at, keys, urgent) VALUES ($1, $2, clock_timestamp(), $3, $4)`, n, id, told, c.urgent)
	switch {
	case !d.features.notify, c.quiet:
	case c.urgent:
		batch.Queue(notify, hurryUp)
	default:
		batch.Queue(notify, "")
	}
	if err := transact(ctx, conn.Conn(), batch); err != nil {
		return fmt.Errorf("committing: %w", err)
	}
	return nil
}

// begin returns a batch that begins a transaction.
func (f features) begin() *pgx.Batch {
	batch := new(pgx.Batch)
	batch.Queue(`BEGIN ISOLATION LEVEL READ COMMITTED`)
	if f.settings != "" {
		batch.Queue(f.settings)
	}
	return batch
}
