// Package forgetful is a store for tests that try very many things: it is in
// memory, and once it is full, it keeps nothing more.
package forgetful

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

func init() { caddy.RegisterModule(Engine{}) }

// Engine opens a new store each time.
type Engine struct{}

// CaddyModule returns the Caddy module information.
func (Engine) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "client_credentials.stores.forgetful", New: func() caddy.Module { return new(Engine) }}
}

// Shared implements store.Engine.
func (Engine) Shared() bool { return false }

// Identity names the one store that can be open.
func (Engine) Identity() string { return "forgetful" }

// Open makes a store, which is the one that Fill means from then on.
func (Engine) Open(context.Context) (store.Store, error) {
	current = &forgetful{records: map[string][]byte{}}
	return current, nil
}

var current *forgetful

// Fill has the store that was opened last keep nothing more.
func Fill() {
	current.mu.Lock()
	defer current.mu.Unlock()
	current.full = true
}

type forgetful struct {
	mu      sync.Mutex
	records map[string][]byte
	full    bool
}

func (s *forgetful) Get(_ context.Context, key string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	value, ok := s.records[key]
	if !ok {
		return nil, store.ErrNotFound
	}
	return slices.Clone(value), nil
}

func (s *forgetful) Scan(ctx context.Context, prefix string, fn func(key string, value []byte) error) error {
	return s.ScanFrom(ctx, prefix, prefix, fn)
}

func (s *forgetful) ScanFrom(_ context.Context, prefix, from string, fn func(key string, value []byte) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(s.records)) {
		if !strings.HasPrefix(key, prefix) || key < from {
			continue
		}
		if err := fn(key, slices.Clone(s.records[key])); err != nil {
			return err
		}
	}
	return nil
}

func (s *forgetful) Commit(_ context.Context, batch store.Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full {
		return nil
	}
	for _, put := range batch.Puts {
		s.records[put.Key] = put.Value
	}
	for _, key := range batch.Deletes {
		delete(s.records, key)
	}
	return nil
}

func (*forgetful) Close() error { return nil }
