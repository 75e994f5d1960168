package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// settings are those of the engine that the database was opened with, or of others
// that have taken its place.
type settings struct {
	current atomic.Pointer[Postgres] // what Adopt has set, or Open
	// connection is by which connections are made: what Try has found good since, if
	// it was not given up.
	connection atomic.Pointer[Postgres]
}

// Try implements store.Shared.
func (d *database) Try(ctx context.Context, engine store.Engine) error {
	if err := d.enter(ctx); err != nil {
		return err
	}
	defer d.gate.RUnlock()

	p, before := engine.(*Postgres), d.settings.current.Load() // its identity says what it is
	if !p.connectsAs(before) {
		if err := p.tryInPlaceOf(ctx, before, d.features); err != nil {
			return fmt.Errorf("connecting to the store in %s by other settings: %w", p.Identity(), err)
		}
	}
	if pool := d.pool.Config(); pool.MaxConns != p.config.MaxConns || pool.MinConns != p.config.MinConns ||
		pool.MinIdleConns != p.config.MinIdleConns || pool.MaxConnLifetime != p.config.MaxConnLifetime ||
		pool.MaxConnLifetimeJitter != p.config.MaxConnLifetimeJitter || pool.MaxConnIdleTime != p.config.MaxConnIdleTime ||
		pool.HealthCheckPeriod != p.config.HealthCheckPeriod {
		logger().Warn("pool_… options of the connection string have changed, and count after a restart")
	}
	d.connectBy(p)
	return nil
}

// Adopt implements store.Shared.
func (d *database) Adopt(engine store.Engine) {
	p := engine.(*Postgres)
	d.connectBy(p)
	d.settings.current.Store(p)
	d.feed.comeTo() // others are told of the lease
}

// connectBy has all connections be made anew where they are made by other settings
// from now on; the feed's own one by its next poll. The pool's size and its times stay.
func (d *database) connectBy(p *Postgres) {
	if before := d.settings.connection.Swap(p); !p.connectsAs(before) {
		d.pool.Reset()
	}
}

// connectsAs reports whether connections need not be made anew.
func (p *Postgres) connectsAs(other *Postgres) bool {
	one, two := p.config.ConnConfig, other.config.ConnConfig
	return p.config.ConnString() == other.config.ConnString() && one.User == two.User && one.Password == two.Password
}

// tryInPlaceOf makes one connection by the settings, and does by it what a poll does,
// which a standby refuses. It does so twice: a pooler that does not keep prepared
// statements apart fails with those of the first time.
func (p *Postgres) tryInPlaceOf(ctx context.Context, before *Postgres, features features) error {
	if p.config.ConnConfig.User != before.config.ConnConfig.User {
		return errors.New("restart Caddy to change the user, which may have other tables")
	}
	return within(ctx, openPatience, func(ctx context.Context) error {
		conn, err := pgx.ConnectConfig(ctx, p.config.ConnConfig)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close(ctx) }()
		for range 2 {
			poll := features.begin()
			poll.Queue(`UPDATE client_credentials_nodes SET polls = polls + 1 WHERE id = $1`, uuid.New()) // of nobody
			if err := transact(ctx, conn, poll); err != nil {
				return err
			}
		}
		return nil
	})
}
