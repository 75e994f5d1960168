package postgres

import (
	"context"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/internal/testpostgres"
	"github.com/clientcredentials/caddy-client-credentials/store"
	"github.com/clientcredentials/caddy-client-credentials/store/storetest"
)

func TestPostgresIsWhatAStoreIsPromisedToBe(t *testing.T) {
	create := func(t *testing.T) string {
		server := testpostgres.Shared(t)
		return server.URL(server.NewDatabase(t))
	}
	storetest.Run(t, create, func(ctx context.Context, url string) (store.Store, error) {
		engine := &Postgres{Connection: url, Lease: caddy.Duration(time.Second)}
		if err := engine.Provision(caddy.Context{}); err != nil {
			return nil, err
		}
		return engine.Open(ctx)
	})
}
