package issuer

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// revokedTokens are the tokens of one credential that were revoked by
// themselves. They are read when a token of it is first verified, so that
// neither the start of the server nor its memory follows how many there are.
type revokedTokens struct {
	// version rises with each revocation; 0 says that they were not read yet.
	version atomic.Uint32

	mu    sync.RWMutex
	until map[string]time.Time // until when each must be kept, by the jti claim
	full  int                  // at how many the expired ones are dropped
}

// revocation is the record of the revocation of a single token.
type revocation struct {
	KeepUntil time.Time `json:"keep_until"`
}

// read reads them from the store, unless that was done.
func (r *revokedTokens) read(ctx context.Context, st store.Store, clientID string) error {
	if r.version.Load() > 0 {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.version.Load() > 0 {
		return nil
	}
	prefix := revokedTokenKey(clientID, "")
	// A client that goes away must not look like a store that can't be read.
	err := st.Scan(context.WithoutCancel(ctx), prefix, func(key string, value []byte) error {
		var record revocation
		if err := json.Unmarshal(value, &record); err != nil {
			return fmt.Errorf("the record of a revocation can't be read: %w", err)
		}
		r.keep(key[len(prefix):], record.KeepUntil)
		return nil
	})
	if err != nil {
		return fmt.Errorf("reading revocations: %w", err)
	}
	r.version.Store(1)
	return nil
}

// add makes the durable revocation of a token count. They were read before.
func (r *revokedTokens) add(id string, until time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keep(id, until)
	r.version.Add(1)
}

// has reports whether the token is one of them; any is, while they were not
// read.
func (r *revokedTokens) has(t *Token) bool {
	version := r.version.Load() // before the look: a revocation after it raises it again
	if version == 0 {
		return true
	}
	if version == t.cleared.Load() {
		return false
	}
	r.mu.RLock()
	_, revoked := r.until[t.ID]
	r.mu.RUnlock()
	if !revoked {
		t.cleared.Store(version)
	}
	return revoked
}

// keep notes a revocation. They are locked.
func (r *revokedTokens) keep(id string, until time.Time) {
	if len(r.until) >= r.full {
		now := time.Now()
		maps.DeleteFunc(r.until, func(_ string, until time.Time) bool { return now.After(until) })
		r.full = 2*len(r.until) + 8
	}
	if r.until == nil {
		r.until = make(map[string]time.Time)
	}
	r.until[id] = until
}

// expiredRevocations returns the batch that removes what the store keeps of
// revoked tokens that have expired: of all, or of more than a few.
func (r *registry) expiredRevocations(ctx context.Context, now time.Time) (batch store.Batch, err error) {
	end := revokedUntilKey("", now)
	due, err := r.dueBefore(ctx, revokedUntilPrefix, end, sweepBatch/2)
	for _, key := range due {
		batch.Deletes = append(batch.Deletes, key, revokedTokenPrefix+key[len(end):])
	}
	return batch, err
}
