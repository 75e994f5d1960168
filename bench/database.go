package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/clientcredentials/caddy-client-credentials/internal/freeport"
	"github.com/clientcredentials/caddy-client-credentials/internal/postgresserver"
)

// database is one in a PostgreSQL server of the benchmark's own.
type database struct {
	server *postgresserver.Server
	url    string
	store  string    // the arguments of store postgres
	conn   *pgx.Conn // to another database: what it asks is not counted
	close  func()
}

const databaseName = "bench"

// startDatabase starts PostgreSQL, with an empty database.
func (b *bench) startDatabase(ctx context.Context) (_ *database, err error) {
	port, giveUp, err := freeport.Take()
	if err != nil {
		return nil, err
	}
	server, err := postgresserver.New(b.temp, port,
		"shared_buffers = 128MB", // as Debian has it
		fmt.Sprint("max_connections = ", 100+10*b.nodes),
		"shared_preload_libraries = 'pg_stat_statements'")
	if err != nil {
		giveUp()
		return nil, err
	}
	d := &database{server: server, url: server.URL(databaseName), close: func() {
		server.Remove()
		giveUp()
	}}
	d.store = d.url
	if b.quick { // on a busy machine: a node that gets no processor for 2 s is to go on
		d.store += " {\n\t\t\tlease 30s\n\t\t}"
	}
	if err = server.Start(); err == nil {
		d.conn, err = pgx.Connect(ctx, server.URL("postgres"))
	}
	for _, statement := range []string{"CREATE EXTENSION pg_stat_statements", "CREATE DATABASE " + databaseName} {
		if err == nil {
			_, err = d.conn.Exec(ctx, statement)
		}
	}
	if err != nil {
		err = fmt.Errorf("PostgreSQL: %w: %s", err, server.Log())
		d.close()
		return nil, err
	}
	return d, nil
}

// fill makes the database hold what the store of a Caddy does that is not running,
// for another Caddy.
func (d *database) fill(ctx context.Context, from, to *caddy) error {
	if err := errors.Join(from.prepare(ctx), to.prepare(ctx)); err != nil {
		return err
	}
	log.Print("copying the store into PostgreSQL")
	cmd := exec.CommandContext(ctx, from.command[0], "client-credentials", "copy", //nolint:gosec // G204: built here
		"--from", from.config, "--from-adapter", "caddyfile", "--to", to.config, "--to-adapter", "caddyfile")
	cmd.Env = append(os.Environ(), from.env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("copying the store: %w: %s", err, out)
	}
	return nil
}

// databaseSize is what the records take on the disk.
type databaseSize struct {
	Credentials int   `json:"credentials"`
	Records     int   `json:"records"`
	Bytes       int64 `json:"bytes"`       // with the index
	IndexBytes  int64 `json:"index_bytes"` // of them
}

func (d *database) measureSize(ctx context.Context) (s databaseSize, err error) {
	if err := d.settle(ctx); err != nil {
		return s, err
	}
	conn, err := pgx.Connect(ctx, d.url)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, conn.Close(ctx)) }()
	err = conn.QueryRow(ctx, `SELECT count(*), pg_total_relation_size('client_credentials_records'), pg_indexes_size('client_credentials_records')
		FROM client_credentials_records`).Scan(&s.Records, &s.Bytes, &s.IndexBytes)
	return s, err
}

// settle has the server do what it would do by itself at some time, while something
// else is measured.
func (d *database) settle(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, d.url)
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, "VACUUM ANALYZE")
	if err == nil {
		_, err = conn.Exec(ctx, "CHECKPOINT")
	}
	return errors.Join(err, conn.Close(ctx))
}

// counters are what the database's server has counted since it was started.
type counters struct {
	at          time.Time
	cpu         time.Duration // of all its processes
	commits     int64         // of transactions that have written, and so waited for the disk
	statements  int64
	connections int64 // now
}

// counters returns them; none where there is no database.
func (d *database) counters(ctx context.Context) (c counters, err error) {
	if d == nil {
		return c, nil
	}
	c.at = time.Now()
	if c.cpu, err = d.cpu(); err != nil {
		return c, err
	}
	// Not by pg_stat_database, which is told by a connection that rests 10 s later.
	err = d.conn.QueryRow(ctx, `SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
		(SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements WHERE dbid = pg_database.oid),
		(SELECT count(*) FROM pg_stat_activity WHERE datid = pg_database.oid AND backend_type = 'client backend')
		FROM pg_database WHERE datname = $1`, databaseName).Scan(&c.commits, &c.statements, &c.connections)
	return c, err
}

// since returns what was counted since before.
func (c counters) since(before counters) (used counted) {
	return counted{c.at.Sub(before.at), c.cpu - before.cpu, c.commits - before.commits, c.statements - before.statements}
}

// counted is what was counted in some time.
type counted struct {
	time, cpu           time.Duration
	commits, statements int64
}

// cpu returns the time that the server's processes have had: each connection has
// one, and what those took that have ended is known in hundredths of a second.
func (d *database) cpu() (sum time.Duration, err error) {
	main := d.server.PID()
	for range 10 {
		if sum, err = cpuTime(append(processes(statParent, main), main)); err == nil {
			break // else one has ended meanwhile
		}
	}
	if err != nil {
		return 0, err
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", main))
	if err != nil {
		return 0, err
	}
	const tick = 10 * time.Millisecond
	for _, field := range []int{statChildrenUser, statChildrenSystem} {
		ticks, err := strconv.ParseInt(statFields(stat)[field], 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ticks) * tick
	}
	return sum, nil
}
