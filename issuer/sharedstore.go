package issuer

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/store"
	"github.com/clientcredentials/caddy-client-credentials/store/backup"
)

// stores holds the open stores by their identity: a reload finds the store open
// and its revocations in memory.
var stores = caddy.NewUsagePool()

// sharedStore is a store with what must outlive a configuration.
type sharedStore struct {
	store.Store
	registry *registry
}

// Destruct closes the store, when the last operation is done.
func (s *sharedStore) Destruct() error {
	s.registry.close()
	return s.Close()
}

// acquire opens the store, or has the one that is open be reached by the settings. All
// else of them counts when the configuration from before lets go.
func acquire(ctx context.Context, engine store.Engine) (*sharedStore, error) {
	value, isOpen, err := stores.LoadOrNew(engine.Identity(), func() (_ caddy.Destructor, err error) {
		// The pool holds a lock while this runs: a panic would leave it locked.
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("opening the store panicked: %v", r)
			}
		}()
		st, err := engine.Open(ctx)
		if err != nil {
			return nil, err
		}
		shared, _ := st.(store.Shared)
		st = store.Measured(st)
		reg, err := openChecked(ctx, st, shared)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", engine.Identity(), err), st.Close())
		}
		return &sharedStore{Store: st, registry: reg}, nil
	})
	if err != nil {
		return nil, err
	}
	shared := value.(*sharedStore)
	if n := shared.registry.nodes; isOpen && n != nil {
		if err := n.Try(ctx, engine); err != nil {
			_, _ = stores.Delete(engine.Identity())
			return nil, err
		}
	}
	return shared, nil
}

// withStore opens the store alone, and writes nothing into it by itself.
func (a *App) withStore(ctx context.Context, do func(store.Store) error) error {
	st, err := a.engine.Open(ctx)
	if err != nil {
		return err
	}
	if err := errors.Join(do(st), st.Close()); err != nil {
		return fmt.Errorf("%s: %w", a.engine.Identity(), err)
	}
	return nil
}

// withStoreAlone does the same where no other node has the store open.
func (a *App) withStoreAlone(ctx context.Context, do func(store.Store) error) error {
	return a.withStore(ctx, func(st store.Store) error {
		if err := requireAlone(ctx, st); err != nil {
			return err
		}
		return do(st)
	})
}

// lookAgain is how long a node may take that can reach the database again until it
// has asked it: it pauses for a second at most, and may wait for a connection.
const lookAgain = 5 * time.Second

// requireStillAlone does the same as requireAlone, before what was done counts: a node
// could not be seen at first that did not reach the database then, or did not find
// its tables.
func requireStillAlone(ctx context.Context, st store.Store) error {
	if _, is := st.(store.Shared); !is {
		return nil
	}
	select {
	case <-time.After(lookAgain):
		return requireAlone(ctx, st)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// requireAlone returns an error that names the hosts where other nodes have the
// store open.
func requireAlone(ctx context.Context, st store.Store) error {
	shared, is := st.(store.Shared)
	if !is {
		return nil
	}
	hosts, err := shared.OpenElsewhere(ctx)
	if err != nil {
		return fmt.Errorf("asking who else has the store open: %w", err)
	}
	if len(hosts) == 0 {
		return nil
	}
	slices.Sort(hosts)
	return fmt.Errorf("a server has the store open, on %s: stop it first; one that was killed counts until its lease has run out",
		strings.Join(slices.Compact(hosts), ", "))
}

// openChecked opens the registry of a store that is whole, and of a format that
// is known.
func openChecked(ctx context.Context, st store.Store, shared store.Shared) (*registry, error) {
	if err := backup.CheckFinished(ctx, st); err != nil {
		return nil, err
	}
	if err := saveOldFormat(ctx, st, filepath.Join(caddy.AppDataDir(), "client_credentials_backups")); err != nil {
		return nil, err
	}
	reg, err := openRegistry(ctx, st, shared)
	if err != nil {
		return nil, fmt.Errorf("reading the store: %w", err)
	}
	return reg, nil
}
