package postgres

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/internal/testpostgres"
	"github.com/clientcredentials/caddy-client-credentials/store"
)

func TestMain(m *testing.M) { testpostgres.Main(m) }

// newURL returns the connection string of an empty database.
func newURL(t testing.TB) string {
	t.Helper()
	server := testpostgres.Shared(t)
	return server.URL(server.NewDatabase(t))
}

func provisioned(t testing.TB, url string, options ...func(*Postgres)) *Postgres {
	t.Helper()
	engine := &Postgres{Connection: url, Lease: caddy.Duration(time.Second)}
	for _, option := range options {
		option(engine)
	}
	if err := engine.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	return engine
}

func open(t testing.TB, url string, options ...func(*Postgres)) *database {
	t.Helper()
	st, err := provisioned(t, url, options...).Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return st.(*database)
}

// follower remembers what it was told.
type follower struct {
	mu   sync.Mutex
	told []string
}

func (f *follower) Changed(keys []string, _ bool) { f.tell(strings.Join(keys, ",")) }

func (f *follower) ChangedAnything(lost bool) { f.tell(fmt.Sprintf("anything, lost: %t", lost)) }

func (f *follower) tell(what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.told = append(f.told, what)
}

func (f *follower) heard() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.told)
}

// join opens a database and follows it.
func join(t testing.TB, url string, options ...func(*Postgres)) (*database, *follower) {
	t.Helper()
	db, f := open(t, url, options...), new(follower)
	if err := db.Follow(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	return db, f
}

func put(t testing.TB, st store.Store, keysAndValues ...string) {
	t.Helper()
	if err := st.Commit(t.Context(), store.Batch{Puts: records(keysAndValues...)}); err != nil {
		t.Fatal(err)
	}
}

func records(keysAndValues ...string) []store.Record {
	var all []store.Record
	for n := 0; n < len(keysAndValues); n += 2 {
		all = append(all, store.Record{Key: keysAndValues[n], Value: []byte(keysAndValues[n+1])})
	}
	return all
}

// eventually waits for what has no other end than that it happens.
func eventually(t testing.TB, what string, happens func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !happens(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen: " + what)
		}
	}
}

func contents(t testing.TB, st store.Store, prefix string) []string {
	t.Helper()
	all := []string{}
	err := st.Scan(t.Context(), prefix, func(key string, value []byte) error {
		all = append(all, key+"="+string(value))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}
