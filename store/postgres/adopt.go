package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// Adopt implements store.Shared. New connections are made by the new settings, the
// one that follows changes at once. The pool's size and its times stay.
func (d *database) Adopt(ctx context.Context, engine store.Engine) error {
	if err := d.enter(ctx); err != nil {
		return err
	}
	defer d.gate.RUnlock()

	p, before := engine.(*Postgres), d.settings.Load() // its identity says what it is
	if p == before {
		return nil
	}
	if !p.connectsAs(before) {
		if err := p.tryInPlaceOf(ctx, before); err != nil {
			return fmt.Errorf("connecting to the store in %s by other settings: %w", p.Identity(), err)
		}
	}
	if pool := d.pool.Config(); pool.MaxConns != p.config.MaxConns || pool.MinConns != p.config.MinConns ||
		pool.MinIdleConns != p.config.MinIdleConns || pool.MaxConnLifetime != p.config.MaxConnLifetime ||
		pool.MaxConnLifetimeJitter != p.config.MaxConnLifetimeJitter || pool.MaxConnIdleTime != p.config.MaxConnIdleTime ||
		pool.HealthCheckPeriod != p.config.HealthCheckPeriod {
		logger().Warn("pool_… options of the connection string have changed, and count after a restart")
	}
	d.settings.Store(p)
	d.feed.comeTo() // others are told of the lease, and by what it connects is replaced
	return nil
}

// connectsAs reports whether connections need not be made anew.
func (p *Postgres) connectsAs(other *Postgres) bool {
	one, two := p.config.ConnConfig, other.config.ConnConfig
	return p.config.ConnString() == other.config.ConnString() && one.User == two.User && one.Password == two.Password
}

// tryInPlaceOf makes one connection by the settings.
func (p *Postgres) tryInPlaceOf(ctx context.Context, before *Postgres) error {
	if p.config.ConnConfig.User != before.config.ConnConfig.User {
		return errors.New("restart Caddy to change the user, which may have other tables")
	}
	return within(ctx, openPatience, func(ctx context.Context) error {
		conn, err := pgx.ConnectConfig(ctx, p.config.ConnConfig)
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	})
}
