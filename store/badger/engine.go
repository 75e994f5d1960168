// Package badger is the embedded store: one Badger database in one directory,
// for one process.
package badger

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	badgerdb "github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

func init() {
	caddy.RegisterModule(Badger{})
}

// Badger keeps credentials, revocations and keys in an embedded
// [Badger](https://github.com/dgraph-io/badger) database. One process at a
// time can hold it: for several Caddy nodes, each would have its own
// credentials.
type Badger struct {
	// The directory of the database. It is made on first start, for its owner
	// only (0700); one that was there before, and is open to others, is warned
	// of. It should lie on a local disk, best on a volume of its own: when that
	// is full, credentials can be revoked, but not created.
	// Placeholders are replaced.
	// Default: `client_credentials` in Caddy's data directory.
	Path string `json:"path,omitempty"`

	dir string
}

// CaddyModule returns the Caddy module information.
func (Badger) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "client_credentials.stores.badger",
		New: func() caddy.Module { return new(Badger) },
	}
}

// Provision works out which directory is meant, and touches nothing.
func (b *Badger) Provision(ctx caddy.Context) error {
	path := filepath.Join(caddy.AppDataDir(), "client_credentials")
	if b.Path != "" {
		var err error
		if path, err = caddy.NewReplacer().ReplaceOrErr(b.Path, true, true); err != nil {
			return fmt.Errorf("store path: %w", err)
		}
	}
	dir, err := canonical(path)
	if err != nil {
		return fmt.Errorf("store path %s: %w", path, err)
	}
	if info, err := os.Stat(dir); err == nil && !info.IsDir() {
		return fmt.Errorf("store path %s is a file; name a directory", dir)
	}
	b.dir = dir
	if metrics := ctx.GetMetricsRegistry(); metrics != nil { // there is none outside of a configuration
		var already prometheus.AlreadyRegisteredError
		if err := metrics.Register(storeFull); err != nil && !errors.As(err, &already) {
			return err
		}
	}
	return nil
}

// UnmarshalCaddyfile sets up the engine from Caddyfile tokens. Syntax:
//
//	badger [<path>]
func (b *Badger) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // consume the engine's name
	if d.NextArg() {
		if b.Path = d.Val(); b.Path == "" {
			return d.Err("the badger store's path is empty")
		}
	}
	if d.NextArg() {
		return d.ArgErr()
	}
	if d.NextBlock(d.Nesting()) {
		return d.Errf("unrecognized option of the badger store: %s", d.Val())
	}
	return nil
}

// Identity returns the directory's absolute path without symbolic links.
func (b *Badger) Identity() string {
	return "badger:" + b.dir
}

// Shared reports that one process alone holds the database.
func (b *Badger) Shared() bool { return false }

// Open opens the database. While another process holds it, it tries again for
// 5 s: a Caddy that is being replaced may not have let go of it yet.
func (b *Badger) Open(ctx context.Context) (opened store.Store, err error) {
	if err := os.MkdirAll(b.dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the store's directory: %w", err)
	}
	err = b.retry(ctx, func() (err error) {
		opened, err = b.open()
		return err
	})
	if err != nil {
		return nil, err
	}
	logger().Info("opened store", zap.String("path", b.dir))
	warnIfOpenToOthers(b.dir)
	return opened, nil
}

// warnIfOpenToOthers tells of a directory that was there before, or whose mode was
// changed: Badger's own files can be read by all who may enter it.
func warnIfOpenToOthers(dir string) {
	info, err := os.Stat(dir)
	if err == nil && runtime.GOOS != "windows" && info.Mode().Perm()&0o007 != 0 {
		logger().Warn("the store's directory is open to every user of this machine: take that away, as with chmod 700",
			zap.String("path", dir), zap.Stringer("mode", info.Mode().Perm()))
	}
}

func (b *Badger) open() (store.Store, error) {
	letGo, err := hold(b.dir)
	if err != nil {
		return nil, err
	}
	if err = roomToOpen(b.dir); err == nil {
		if err = inspect(b.dir); err != nil {
			err = damaged(b.dir, err)
		}
	}
	if _, missing := os.Stat(filepath.Join(b.dir, lossFile)); missing == nil {
		err = fmt.Errorf("what the store in %s has lost was accepted only in part; run again: caddy client-credentials accept-loss", b.dir)
	}
	if err := errors.Join(err, letGo()); err != nil {
		return nil, err
	}
	db, err := badgerdb.Open(dbOptions(b.dir))
	switch {
	case lockedElsewhere(err):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("opening the store in %s: %w; if a file there is damaged, %s", b.dir, err, remedy)
	}
	h, err := attest(b.dir, db)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	if err := removeUnnamed(b.dir); err != nil {
		return nil, errors.Join(err, h.close(), db.Close())
	}
	return newDatabase(b.dir, db, h), nil
}

// retry does something that needs the directory's lock, until it gets it.
func (b *Badger) retry(ctx context.Context, do func() error) error {
	deadline := time.Now().Add(lockPatience)
	for {
		err := do()
		switch {
		case !lockedElsewhere(err):
			return err
		case time.Now().After(deadline):
			return fmt.Errorf("the store in %s is held by another process, most likely a running Caddy: "+
				"change its configuration with 'caddy reload', or stop it first: %w", b.dir, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

const lockPatience = 5 * time.Second

var errHeld = errors.New("its directory is locked")

// maxValue leaves room for the checksum: Badger would put longer values into
// another log, which nothing here looks after.
const maxValue = store.MaxValue

func dbOptions(dir string) badgerdb.Options {
	return badgerdb.DefaultOptions(dir).
		// A reply that acknowledges a write comes after it is on the disk.
		WithSyncWrites(true).
		// The records are small and few: what is large by default would only
		// cost memory and disk.
		WithMemTableSize(memTableSize).
		WithNumMemtables(2).
		WithNumLevelZeroTables(level0Tables).
		WithValueThreshold(1 << 20).
		WithValueLogFileSize(16 << 20).
		WithCompression(options.None).
		WithBlockCacheSize(0).
		WithIndexCacheSize(0).
		// The default returns wrong data silently, and checking each block as
		// it is read panics; this one fails to open.
		WithChecksumVerificationMode(options.OnTableRead).
		WithMetricsEnabled(false).
		WithLogger(zapLogger{})
}

func lockedElsewhere(err error) bool {
	return err != nil && (errors.Is(err, errHeld) || strings.Contains(err.Error(), "Another process is using this Badger database"))
}

// canonical resolves the symbolic links of the part of path that exists.
func canonical(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	rest := ""
	for existing := path; ; existing = filepath.Dir(existing) {
		resolved, err := filepath.EvalSymlinks(existing)
		if err == nil {
			return filepath.Join(resolved, rest), nil
		}
		if !errors.Is(err, fs.ErrNotExist) || existing == filepath.Dir(existing) {
			return "", err
		}
		rest = filepath.Join(filepath.Base(existing), rest)
	}
}

// logger is asked for at each use: the store outlives the configuration that
// opened it, and with it the configuration's logger.
func logger() *zap.Logger { return caddy.Log().Named("client_credentials.stores.badger") }

// zapLogger lets Badger log through Caddy. What Badger calls info is of
// interest only to who debugs it.
type zapLogger struct{}

func (zapLogger) Errorf(format string, args ...any)   { badgerSays(zap.ErrorLevel, format, args) }
func (zapLogger) Warningf(format string, args ...any) { badgerSays(zap.WarnLevel, format, args) }
func (zapLogger) Infof(format string, args ...any)    { badgerSays(zap.DebugLevel, format, args) }
func (zapLogger) Debugf(format string, args ...any)   { badgerSays(zap.DebugLevel, format, args) }

func badgerSays(level zapcore.Level, format string, args []any) {
	if entry := logger().Check(level, "badger"); entry != nil {
		entry.Write(zap.String("message", strings.TrimSpace(fmt.Sprintf(format, args...))))
	}
}

// Interface guards
var (
	_ caddy.Provisioner     = (*Badger)(nil)
	_ caddyfile.Unmarshaler = (*Badger)(nil)
	_ store.Mender          = (*Badger)(nil)
)
