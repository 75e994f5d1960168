package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// endedRights is what a node remembers of the changes that ended rights, while
// tokens live from before. A database that fails over to a replica may lose such a
// change after it was acknowledged: who knows of it goes on refusing, and has the
// database know of it again.
type endedRights struct {
	mu          sync.Mutex
	credentials map[string]endedCredential // by client id
	tokens      map[string]revocation      // by client id and jti, a slash between them
	// restored is closed when the database knows again of all of this; nil where it
	// has forgotten nothing.
	restored chan struct{}
	restores int // how often that was begun
}

// endedCredential is a credential as it was after the change.
type endedCredential struct {
	*Credential
	until time.Time
}

func newEndedRights() endedRights {
	return endedRights{credentials: make(map[string]endedCredential), tokens: make(map[string]revocation)}
}

func (n *nodes) remember(c *Credential, lifetime time.Duration) {
	if n == nil {
		return
	}
	n.ended.mu.Lock()
	defer n.ended.mu.Unlock()
	if before, known := n.ended.credentials[c.ClientID]; !known || c.outdoes(before.Credential) {
		n.ended.credentials[c.ClientID] = endedCredential{c, time.Now().Add(lifetime)}
	}
}

// outdoes reports whether a state of a credential counts more than another one: by its
// version, unless one of them is the end. They may be of histories that know nothing of
// each other.
func (c *Credential) outdoes(other *Credential) bool {
	if c.endedForGood() != other.endedForGood() {
		return c.endedForGood()
	}
	return c.Version > other.Version
}

// endedForGood reports whether it was revoked. What is declared can be declared again.
func (c *Credential) endedForGood() bool { return !c.Revoked.IsZero() && !c.Declared }

func (n *nodes) rememberToken(key string, record revocation) {
	if n == nil {
		return
	}
	n.ended.mu.Lock()
	defer n.ended.mu.Unlock()
	n.ended.tokens[key] = record
}

// latest returns the credential, or what is remembered of it, where that counts more.
func (n *nodes) latest(c *Credential) *Credential {
	if n == nil {
		return c
	}
	n.ended.mu.Lock()
	defer n.ended.mu.Unlock()
	if ended, known := n.ended.credentials[c.ClientID]; known && ended.outdoes(c) {
		return ended.Credential
	}
	return c
}

// remembersToken reports whether a token is known to be revoked by itself.
func (n *nodes) remembersToken(key string) bool {
	if n == nil {
		return false
	}
	n.ended.mu.Lock()
	defer n.ended.mu.Unlock()
	_, known := n.ended.tokens[key]
	return known
}

// forget drops what no token depends on any more.
func (n *nodes) forget(now time.Time) {
	if n == nil {
		return
	}
	n.ended.mu.Lock()
	defer n.ended.mu.Unlock()
	for id, c := range n.ended.credentials {
		if now.After(c.until) {
			delete(n.ended.credentials, id)
		}
	}
	for key, record := range n.ended.tokens {
		if now.After(record.KeepUntil) {
			delete(n.ended.tokens, key)
		}
	}
}

// beginToRestore notes that the database is being told again, until done is called.
func (e *endedRights) beginToRestore() (done func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	restored := make(chan struct{})
	e.restored = restored
	e.restores++
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		close(restored)
		if e.restored == restored { // the database has not forgotten more since
			e.restored = nil
		}
	}
}

// restoring returns how often the database had to be told again, and what is closed
// when it has been; nil where nobody is about it.
func (e *endedRights) restoring() (restores int, restored <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.restores, e.restored
}

// restoreAtOnce is how many tokens are written again by one commit.
const restoreAtOnce = 500

// restoreEnded durably has the store know again what is remembered.
func (r *registry) restoreEnded(ctx context.Context) error {
	r.nodes.ended.mu.Lock()
	var credentials []*Credential
	for _, c := range r.nodes.ended.credentials {
		credentials = append(credentials, c.Credential)
	}
	tokens := maps.Clone(r.nodes.ended.tokens)
	r.nodes.ended.mu.Unlock()
	for some := range slices.Chunk(slices.Sorted(maps.Keys(tokens)), restoreAtOnce) {
		batch := store.Batch{Urgent: true}
		for _, id := range some {
			key, until := revokedTokenPrefix+id, tokens[id].KeepUntil
			value, err := json.Marshal(tokens[id])
			if err != nil {
				return err
			}
			batch.Puts = append(batch.Puts, store.Record{Key: key, Value: value}, store.Record{Key: revokedUntilKey(key, until)})
		}
		if err := r.store.Commit(ctx, batch); err != nil {
			return err
		}
	}
	for _, c := range credentials {
		if err := r.restoreCredential(ctx, c); err != nil {
			return err
		}
	}
	if err := r.restoreRevokedKeys(ctx); err != nil {
		return err
	}
	nodeLog().Info("wrote again what has ended rights", zap.Int("credentials", len(credentials)), zap.Int("tokens", len(tokens)))
	return nil
}

// restoreRevokedKeys has the store know of the keys that are revoked here. All
// nodes that know of them do the same.
func (r *registry) restoreRevokedKeys(ctx context.Context) error {
	for {
		records, before, err := readKeyRecords(ctx, r.store)
		if err != nil {
			return err
		}
		for id, record := range records {
			if record.Revoked.IsZero() && r.keyRevoked(id) {
				record.Revoked = time.Now().UTC()
				records[id] = record
			}
		}
		if err := records.commit(ctx, r.store, before); !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
}

// restoreCredential has the store hold what is remembered of a credential, where it
// has an earlier state of it. Where that was changed since, in a history that does
// not know of the one that is lost, at least its tokens end.
func (r *registry) restoreCredential(ctx context.Context, remembered *Credential) error {
	for {
		value, err := r.store.Get(ctx, credentialKey(remembered.ClientID))
		if errors.Is(err, store.ErrNotFound) {
			return nil // none of its tokens counts
		}
		if err != nil {
			return err
		}
		before, err := decodeCredential(value)
		if err != nil {
			return err
		}
		var after Credential
		switch {
		case before.endedForGood():
			return nil
		case before.Version < remembered.Version:
			after = *remembered
			after.Version-- // putChange raises it
			after.Disabled = after.Disabled || before.Disabled
		case before.Epoch < remembered.Epoch || before.Revoked.IsZero() && !remembered.Revoked.IsZero():
			after = *before
			after.endTokens(time.Now())
			after.Disabled = after.Disabled || remembered.Disabled
			after.Revoked = remembered.Revoked
		default:
			return nil
		}
		batch := store.Batch{Urgent: true}
		written, err := putChange(&batch, value, before, &after)
		if err == nil {
			err = r.store.Commit(ctx, batch) // not r.commit: who waits for the other nodes waits for this
		}
		if err == nil {
			r.apply(written)
			r.nodes.remember(written, r.longestLifetime()+clockMargin)
		}
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
}
