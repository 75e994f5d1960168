// Package postgres keeps the store in a PostgreSQL database, which several
// Caddy nodes share.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

func init() {
	caddy.RegisterModule(Postgres{})
}

// Postgres keeps credentials, revocations and keys in a
// [PostgreSQL](https://www.postgresql.org) database that several Caddy nodes
// share. A revocation holds on all of them when it is answered.
//
// A reload that changes its settings has them count, but for another user of the
// database, which it refuses, and for the connection string's options of the pool:
// these take a restart of Caddy.
type Postgres struct {
	// The connection string, as a URL or as keywords and values, with the options of
	// [pgxpool](https://pkg.go.dev/github.com/jackc/pgx/v5/pgxpool#ParseConfig),
	// which are mostly those of libpq, and those for TLS among them. Without
	// `sslmode=verify-full`, whoever is on the way can read and change all.
	// What it leaves out is taken from the environment (`PGHOST`, `PGPASSWORD`,
	// …), as libpq does. Best a placeholder, such as `{env.DATABASE_URL}` or
	// `{file./run/secrets/database_url}`: the configuration can be read at Caddy's
	// admin endpoint. The tables are in the first schema of the `search_path` that
	// exists. Required. Placeholders are replaced.
	Connection string `json:"connection,omitempty"`

	// How long this node may not have heard from the database and still accept
	// tokens, from 1s to 1m. A revocation waits as long, and a little longer as
	// clocks' rates differ, for a node that is cut off or was killed. Raise it where
	// a failover of the database takes longer.
	// Default: `2s`
	Lease caddy.Duration `json:"lease,omitempty"`

	// What this node does when its lease has run out: `refuse` tokens, as one may
	// have been revoked, or `accept` those that it can tell by what it has in memory.
	// Default: `refuse`
	OnStale string `json:"on_stale,omitempty"`

	// What a revocation through this node waits for: `all` other nodes, until each
	// knows of it or its lease has run out, or `none`.
	// Default: `all`
	RevokeWait string `json:"revoke_wait,omitempty"`

	config *pgxpool.Config
}

// The values of Postgres.OnStale and Postgres.RevokeWait.
const (
	OnStaleRefuse  = "refuse"
	OnStaleAccept  = "accept"
	RevokeWaitAll  = "all"
	RevokeWaitNone = "none"
)

// DefaultLease is the lease where nothing is configured.
const DefaultLease = 2 * time.Second

// CaddyModule returns the Caddy module information.
func (Postgres) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "client_credentials.stores.postgres",
		New: func() caddy.Module { return new(Postgres) },
	}
}

// Provision checks the settings, and connects to nothing.
func (p *Postgres) Provision(ctx caddy.Context) error {
	if p.Lease == 0 {
		p.Lease = caddy.Duration(DefaultLease)
	}
	if p.OnStale == "" {
		p.OnStale = OnStaleRefuse
	}
	if p.RevokeWait == "" {
		p.RevokeWait = RevokeWaitAll
	}
	if err := errors.Join(validateLease(p.Lease), validateOnStale(p.OnStale), validateRevokeWait(p.RevokeWait)); err != nil {
		return err
	}
	config, err := p.parse()
	if err != nil {
		return err
	}
	p.config = config
	if registry := ctx.GetMetricsRegistry(); registry != nil { // there is none outside of a configuration
		var already prometheus.AlreadyRegisteredError
		if err := registry.Register(metrics); err != nil && !errors.As(err, &already) {
			return err
		}
	}
	return nil
}

// UnmarshalCaddyfile sets up the engine from Caddyfile tokens. Syntax:
//
//	postgres <connection string> {
//	    lease       <duration>
//	    on_stale    refuse | accept
//	    revoke_wait all | none
//	}
func (p *Postgres) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the engine's name
	// The errors repeat no argument: one may be, or have in it, a password.
	if !d.NextArg() || d.Val() == "" {
		return d.Err("the postgres store takes a connection string, such as {env.DATABASE_URL}")
	}
	p.Connection = d.Val()
	if d.NextArg() {
		return d.Err("the postgres store takes one connection string: put it in quotes if it has spaces")
	}
	if !strings.Contains(p.Connection, "{") { // else it is known when the configuration is loaded
		if _, err := pgxpool.ParseConfig(p.Connection); err != nil && !ofFiles(err) {
			return d.WrapErr(parseError(err))
		}
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if err := p.unmarshalSetting(d); err != nil {
			return err
		}
	}
	return nil
}

func (p *Postgres) unmarshalSetting(d *caddyfile.Dispenser) error {
	var err error
	name, value := d.Val(), ""
	switch name {
	case "lease", "on_stale", "revoke_wait":
	default:
		return d.Errf("unrecognized option of the postgres store: %s", name)
	}
	if !d.AllArgs(&value) {
		return d.Errf("%s takes one value", name)
	}
	if name == "lease" && p.Lease != 0 || name == "on_stale" && p.OnStale != "" || name == "revoke_wait" && p.RevokeWait != "" {
		return d.Errf("%s is already specified", name)
	}
	switch name {
	case "lease":
		var lease time.Duration
		if lease, err = caddy.ParseDuration(value); err != nil {
			return d.WrapErr(fmt.Errorf("lease is not a duration, such as 2s: %w", err))
		}
		p.Lease = caddy.Duration(lease)
		err = validateLease(p.Lease)
	case "on_stale":
		p.OnStale = value
		err = validateOnStale(value)
	case "revoke_wait":
		p.RevokeWait = value
		err = validateRevokeWait(value)
	}
	if err != nil {
		return d.WrapErr(err)
	}
	return nil
}

func validateLease(lease caddy.Duration) error {
	if lease := time.Duration(lease); lease < time.Second || lease > time.Minute {
		return errors.New("lease must be from 1s to 1m")
	}
	return nil
}

func validateOnStale(value string) error {
	if value != OnStaleRefuse && value != OnStaleAccept {
		return errors.New("on_stale is refuse or accept")
	}
	return nil
}

func validateRevokeWait(value string) error {
	if value != RevokeWaitAll && value != RevokeWaitNone {
		return errors.New("revoke_wait is all or none")
	}
	return nil
}

// Identity returns the database's hosts, its name and its schema: neither user
// nor password.
func (p *Postgres) Identity() string {
	config := p.config.ConnConfig
	hosts := []string{address(config.Host, config.Port)}
	for _, other := range config.Fallbacks { // the same host twice, where TLS is optional
		hosts = append(hosts, address(other.Host, other.Port))
	}
	slices.Sort(hosts)
	database := config.Database
	if database == "" {
		database = config.User // as the server has it
	}
	identity := []string{"postgres:" + strings.Join(slices.Compact(hosts), ",") + "/" + database}
	for _, setting := range []string{"search_path", "options"} {
		if value := config.RuntimeParams[setting]; value != "" {
			identity = append(identity, setting+"="+value)
		}
	}
	return strings.Join(identity, " ")
}

func address(host string, port uint16) string {
	return net.JoinHostPort(strings.ToLower(strings.TrimSuffix(host, ".")), strconv.Itoa(int(port)))
}

// Shared reports that other nodes may have the database open too.
func (p *Postgres) Shared() bool { return true }

// openPatience is how long it is tried to reach a database that has not started yet.
const openPatience = 5 * time.Second

// Open connects to the database, and makes its tables where there are none.
func (p *Postgres) Open(ctx context.Context) (store.Store, error) {
	settings := new(settings)
	settings.current.Store(p)
	settings.connection.Store(p)
	config := p.config.Copy()
	config.BeforeConnect = func(_ context.Context, conn *pgx.ConnConfig) error {
		*conn = *settings.connection.Load().config.ConnConfig.Copy()
		return nil
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("opening the store in %s: %w", p.Identity(), err)
	}
	var features features
	err = persist(ctx, func(ctx context.Context) (err error) {
		if err = migrate(ctx, pool); err == nil {
			features, err = probe(ctx, pool)
		}
		return err
	})
	if err != nil {
		pool.Close()
		return nil, fmt.Errorf("opening the store in %s: %w", p.Identity(), err)
	}
	logger().Info("opened store", zap.String("database", p.Identity()), zap.Bool("notify", features.notify))
	return newDatabase(settings, pool, features), nil
}

// persist does something that needs the database, and tries again for a while
// where that can't be reached, or has just been started.
func persist(ctx context.Context, do func(context.Context) error) error {
	deadline := time.Now().Add(openPatience)
	for {
		err := within(ctx, openPatience, do)
		if !unreachable(err) || time.Now().After(deadline) || sleep(ctx, 200*time.Millisecond) != nil {
			return err
		}
	}
}

func unreachable(err error) bool {
	if answer, ok := errors.AsType[*pgconn.PgError](err); ok {
		return answer.Code == cannotConnectNow
	}
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	return connecting || pgconn.Timeout(err)
}

// parse returns what the connection string says, with the time limits that the
// lease asks for.
func (p *Postgres) parse() (*pgxpool.Config, error) {
	if p.Connection == "" {
		return nil, errors.New("the postgres store takes a connection string, such as {env.DATABASE_URL}")
	}
	text, err := caddy.NewReplacer().ReplaceOrErr(p.Connection, true, true)
	switch {
	case err == nil:
	case strings.HasPrefix(p.Connection, "{") && strings.IndexByte(p.Connection, '}') == len(p.Connection)-1:
		return nil, fmt.Errorf("connection string: %w", err)
	default: // it may repeat a part of a password that has braces
		return nil, errors.New(`the connection string has a placeholder that is unknown or empty (braces that are none are written \{ and \})`)
	}
	config, err := pgxpool.ParseConfig(text)
	if err != nil {
		return nil, parseError(err)
	}
	lease := time.Duration(p.Lease)
	conn := config.ConnConfig
	conn.DialFunc = dialer(lease).DialContext
	limit := min(lease/2, 1500*time.Millisecond) // so that a node serves soon after the database's return
	if conn.ConnectTimeout == 0 || conn.ConnectTimeout > limit {
		conn.ConnectTimeout = limit // for each host
	}
	if config.PingTimeout == 0 {
		config.PingTimeout = limit
	}
	if conn.ValidateConnect == nil {
		// All that is done here writes: of several hosts, one that does not take it is the wrong one.
		conn.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	if conn.RuntimeParams["application_name"] == "" {
		conn.RuntimeParams["application_name"] = "caddy_client_credentials"
	}
	conn.OnNotice = noteWarning
	return config, nil
}

// parseError leaves out of an error what may be a part of the connection string,
// and so of a password: pgx masks only what it can recognize as one. What is wrong
// with files stays.
func parseError(err error) error {
	text := bare(err)
	if cause := errors.Unwrap(err); cause != nil && !ofFiles(err) {
		text = strings.TrimSuffix(text, " ("+cause.Error()+")")
	}
	return fmt.Errorf("the connection string can't be read: %s; it is a URL, such as postgres://user:password@host:5432/database, "+
		"where other characters of a password than letters and digits are best written as %%XX, "+
		"or keywords and values, such as 'host=… dbname=…'", text)
}

// ofFiles tells whether the error is about files that a connection string names.
func ofFiles(err error) bool {
	text := bare(err)
	return strings.HasPrefix(text, "failed to configure TLS") || strings.HasPrefix(text, "failed to read service")
}

// bare returns the text of an error of pgx without the connection string.
func bare(err error) string {
	var parse *pgconn.ParseConfigError
	if !errors.As(err, &parse) {
		return "it is not a connection string"
	}
	without := *parse
	without.ConnString = ""
	return strings.TrimPrefix(without.Error(), "cannot parse ``: ")
}

// dialer has the kernel find out that the other end has gone, where it can.
func dialer(lease time.Duration) *net.Dialer {
	return &net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: lease, Interval: lease, Count: 2},
		Control:         limitUnacknowledged(lease),
	}
}

// logger is asked for at each use: the store outlives the configuration that
// opened it, and with it the configuration's logger.
func logger() *zap.Logger { return caddy.Log().Named("client_credentials.stores.postgres") }

// Interface guards
var (
	_ caddy.Provisioner     = (*Postgres)(nil)
	_ caddyfile.Unmarshaler = (*Postgres)(nil)
	_ store.Engine          = (*Postgres)(nil)
)
