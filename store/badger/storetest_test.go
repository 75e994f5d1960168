package badger

import (
	"context"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/store"
	"github.com/clientcredentials/caddy-client-credentials/store/storetest"
)

func TestBadgerIsWhatAStoreIsPromisedToBe(t *testing.T) {
	storetest.Run(t, func(t *testing.T) string { return t.TempDir() }, func(ctx context.Context, dir string) (store.Store, error) {
		engine := &Badger{Path: dir}
		if err := engine.Provision(caddy.Context{}); err != nil {
			return nil, err
		}
		return engine.Open(ctx)
	})
}
