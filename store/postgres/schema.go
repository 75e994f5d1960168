package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"
)

// migrations lead from one version of the tables to the next: the first from
// none to version 1. README.md says for each how to go back. Each can be carried
// out again where it was broken off: not every database can undo half of it.
var migrations = [][]string{{
	// Keys sort by their bytes. A value has its checksum before it (store.Seal).
	`CREATE TABLE IF NOT EXISTS client_credentials_records (
		key   bytea PRIMARY KEY,
		value bytea NOT NULL
	)`,
	// Each commit has a number, the next one, and an id that it draws: so that it can
	// be told from another of that number in another copy of the database. This is
	// the last one's. Whoever commits locks this row first.
	`CREATE TABLE IF NOT EXISTS client_credentials_head (
		one boolean PRIMARY KEY DEFAULT true CHECK (one),
		n   bigint  NOT NULL,
		id  uuid    NOT NULL
	)`,
	// What the last commits have put or deleted.
	`CREATE TABLE IF NOT EXISTS client_credentials_changes (
		n      bigint      PRIMARY KEY,
		id     uuid        NOT NULL,
		at     timestamptz NOT NULL,
		keys   bytea[]     NOT NULL,
		urgent boolean     NOT NULL
	)`,
	// Who has the store open. The last two are for who looks at the table.
	`CREATE TABLE IF NOT EXISTS client_credentials_nodes (
		id       uuid        PRIMARY KEY,
		applied  bigint      NOT NULL,
		polls    bigint      NOT NULL,
		lease_ms bigint      NOT NULL,
		host     text        NOT NULL,
		seen     timestamptz NOT NULL
	)`,
}}

// The first commit, of nothing.
const firstCommit = `WITH head AS (INSERT INTO client_credentials_head (n, id) VALUES (0, $1) ON CONFLICT (one) DO NOTHING RETURNING n, id)
	INSERT INTO client_credentials_changes (n, id, at, keys, urgent) SELECT n, id, clock_timestamp(), '{}', false FROM head`

// The SQLSTATE codes that are looked for.
const (
	undefinedTable       = "42P01"
	undefinedFunction    = "42883"
	notSupported         = "0A000"
	duplicateTable       = "42P07"
	uniqueViolation      = "23505"
	serializationFailure = "40001"
	deadlockDetected     = "40P01"
	readOnlyTransaction  = "25006"
	diskFull             = "53100"
	cannotConnectNow     = "57P03"
)

// migrationLock is the advisory lock of who makes or changes the tables, in a
// space that other programs use too: a number that nobody else draws.
const migrationLock = 5_207_114_981_320_461

// migrate brings the tables to the version that this program knows.
func migrate(ctx context.Context, pool *pgxpool.Pool) error {
	version, err := readVersion(ctx, pool)
	if err != nil || version == len(migrations) {
		return err
	}
	// Two that make the same tables at once: one of them fails where there are no
	// advisory locks, and finds them made when it looks again.
	for range 3 {
		err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return migrateIn(ctx, tx) })
		if !is(err, duplicateTable, uniqueViolation, serializationFailure, deadlockDetected) {
			return err
		}
	}
	return err
}

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// readVersion returns the version of the tables, or 0 where there are none.
func readVersion(ctx context.Context, db querier) (version int, err error) {
	err = db.QueryRow(ctx, `SELECT version FROM client_credentials_schema`).Scan(&version)
	switch {
	case is(err, undefinedTable):
		return 0, nil
	case err != nil:
		return 0, fmt.Errorf("reading the version of the tables: %w", err)
	case version > len(migrations):
		return 0, fmt.Errorf("its tables have version %d, which a later version of this plugin has made; this one knows up to %d", version, len(migrations))
	case version < 1:
		return 0, fmt.Errorf("its tables have version %d, which never was", version)
	}
	return version, nil
}

func migrateIn(ctx context.Context, tx pgx.Tx) error {
	err := pgx.BeginFunc(ctx, tx, func(savepoint pgx.Tx) error {
		_, err := savepoint.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(migrationLock))
		return err
	})
	if err != nil && !is(err, undefinedFunction, notSupported) {
		return err
	}
	if _, err := tx.Exec(ctx, `CREATE TABLE IF NOT EXISTS client_credentials_schema (
		one     boolean PRIMARY KEY DEFAULT true CHECK (one),
		version integer NOT NULL
	)`); err != nil {
		return fmt.Errorf("making tables: %w", err)
	}
	version := 0
	err = tx.QueryRow(ctx, `SELECT version FROM client_credentials_schema`).Scan(&version)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("reading the version of the tables: %w", err)
	}
	if version >= len(migrations) {
		return nil // by somebody else, meanwhile
	}
	for _, migration := range migrations[version:] {
		for _, statement := range migration {
			if _, err := tx.Exec(ctx, statement); err != nil {
				return fmt.Errorf("making tables: %w", err)
			}
		}
	}
	if version == 0 {
		if _, err := tx.Exec(ctx, firstCommit, uuid.New()); err != nil {
			return fmt.Errorf("making tables: %w", err)
		}
	}
	_, err = tx.Exec(ctx, `INSERT INTO client_credentials_schema (version) VALUES ($1)
		ON CONFLICT (one) DO UPDATE SET version = excluded.version`, len(migrations))
	if err == nil {
		logger().Info("made tables", zap.Int("version", len(migrations)), zap.Int("version_before", version))
	}
	return err
}

// features are what not every database has that speaks PostgreSQL's protocol.
type features struct {
	// notify tells whether there are notifications.
	notify bool
	// settings is the statement that each transaction begins with, or empty.
	settings string
}

// transactionSettings are made by each transaction for itself: a pooler between
// here and the database may give it any session.
var transactionSettings = []string{
	// What is acknowledged is on the disk, and with who must have it too: whatever
	// the role, or the database, has for others.
	`set_config('synchronous_commit', CASE current_setting('synchronous_commit') WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)`,
	// A node that is cut off while it holds the head gives it up while the others
	// still wait for it. Neither limit counts while a commit waits for a replica.
	`set_config('idle_in_transaction_session_timeout', '2s', true)`,
	`set_config('statement_timeout', '4s', true)`,
}

// probe tries what the database has.
func probe(ctx context.Context, pool *pgxpool.Pool) (found features, err error) {
	works := func(statement string, args ...any) (bool, error) {
		_, err := pool.Exec(ctx, statement, args...)
		if _, ok := errors.AsType[*pgconn.PgError](err); ok {
			logger().Info("the database lacks a feature", zap.String("statement", statement), zap.Error(err))
			return false, nil
		}
		return err == nil, err
	}
	for _, setting := range transactionSettings {
		ok, err := works("SELECT " + setting)
		if err != nil {
			return found, err
		}
		switch {
		case !ok:
		case found.settings == "":
			found.settings = "SELECT " + setting
		default:
			found.settings += ", " + setting
		}
	}
	found.notify, err = works(notify, "")
	return found, err
}

// is tells whether an answer of the database has one of the codes.
func is(err error, codes ...string) bool {
	answer, ok := errors.AsType[*pgconn.PgError](err)
	return ok && slices.Contains(codes, answer.Code)
}
