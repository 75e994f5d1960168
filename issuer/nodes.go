package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// Several servers can share a store, as its nodes. What one of them commits, the
// others are told of, and only then does a change that ends rights return. What a
// node remembers counts for as long as it hears from the store.

// nodes is what a registry has of a store that is shared; nil for any other.
type nodes struct {
	store.Shared

	// asked is when the keys were last read because a token came of an unknown one,
	// in Unix nanoseconds.
	asked atomic.Int64

	mu sync.Mutex
	// ended are credentials as they were after changes that ended rights, while
	// tokens live from before: a database that fails over may lose such a change
	// after it was acknowledged.
	ended map[string]endedCredential
	// endedTokens are the records of single tokens that were revoked, likewise.
	endedTokens map[string]revocation
}

type endedCredential struct {
	*Credential
	until time.Time
}

const (
	// askAgain bounds how often tokens of unknown keys have the keys read.
	askAgain = time.Second
	// awaitPatience is for a database that goes away after it has taken a change:
	// longer than any lease.
	awaitPatience = 90 * time.Second
	// tryAgain is how long to wait after the store could not be read.
	tryAgain = 200 * time.Millisecond
)

// follow has the registry told of what all nodes commit. It returns when all is
// known that was committed before.
func (r *registry) follow(ctx context.Context, shared store.Shared) error {
	r.nodes = &nodes{
		Shared:      shared,
		ended:       make(map[string]endedCredential),
		endedTokens: make(map[string]revocation),
	}
	return shared.Follow(ctx, r)
}

// Ready returns nil while the server can tell what a token is worth.
func (i *Issuer) Ready() error { return i.registry.stale() }

// stale returns an error where what is remembered may not be so any more.
func (r *registry) stale() error {
	if r.nodes == nil {
		return nil
	}
	return r.nodes.Stale()
}

// await returns when no node accepts any more what a change has ended that this
// one has committed. The change itself is durable before that.
func (r *registry) await(ctx context.Context) error {
	if r.nodes == nil {
		return nil
	}
	// Once begun, it is not given up because the caller went away.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), awaitPatience)
	defer cancel()
	if err := r.nodes.Await(ctx); err != nil {
		return fmt.Errorf("waiting for the other nodes: %w", err)
	}
	return nil
}

// Changed implements store.Follower.
func (r *registry) Changed(keys []string, urgent bool) {
	var credentials, tokens []string
	keysChanged := false
	for _, key := range keys {
		switch prefix, rest, _ := strings.Cut(key, "/"); prefix + "/" {
		case credentialPrefix:
			r.changes[r.group(rest)].Add(1)
			credentials = append(credentials, rest)
		case revokedTokenPrefix:
			clientID, _, _ := strings.Cut(rest, "/")
			r.changes[r.group(clientID)].Add(1)
			tokens = append(tokens, rest)
		case keyPrefix, pepperPrefix:
			keysChanged = true
		}
	}
	if keysChanged {
		r.keysChanged()
	}
	go r.catchUp(credentials, tokens, urgent)
}

// ChangedAnything implements store.Follower.
func (r *registry) ChangedAnything(lost bool) {
	for group := range r.changes {
		r.changes[group].Add(1)
	}
	r.keysChanged()
	go func() {
		for n := range r.watches {
			r.catchUp(r.watches[n].clients(), nil, false)
		}
		if lost {
			nodeLog().Warn("the database has lost what it had acknowledged, or is another one: writing again what has ended rights")
			r.retry("writing again what has ended rights", r.restoreEnded)
		}
	}()
}

// catchUp tells the streams of credentials that were changed, and remembers what
// the changes have ended.
func (r *registry) catchUp(credentials, tokens []string, urgent bool) {
	for _, clientID := range credentials {
		list := r.watchList(r.group(clientID))
		if !urgent && !list.watched() {
			continue
		}
		r.retry("reading a credential that another node has changed", func(ctx context.Context) error {
			c, err := r.read(ctx, clientID)
			if errors.Is(err, store.ErrNotFound) {
				return nil
			}
			if err == nil {
				list.credentialChanged(r, c)
				if urgent {
					r.nodes.remember(c, r.longestLifetime()+clockMargin)
				}
			}
			return err
		})
	}
	for _, revoked := range tokens {
		clientID, id, _ := strings.Cut(revoked, "/")
		r.retry("reading a token that another node has revoked", func(ctx context.Context) error {
			record, err := r.readRevocation(ctx, clientID, id)
			if errors.Is(err, store.ErrNotFound) { // it has expired
				return nil
			}
			if err == nil {
				r.watchList(r.group(clientID)).tokenRevoked(r, clientID, id)
				r.nodes.rememberToken(revoked, record)
			}
			return err
		})
	}
}

// keysChanged has revoked keys count, and has each configuration look at the keys
// anew. It returns only when it could read which are revoked: until then, this node
// is not to be taken for one that knows.
func (r *registry) keysChanged() {
	r.retry("reading which signing keys are revoked", func(ctx context.Context) error {
		records, _, err := readKeyRecords(ctx, r.store)
		for id, record := range records {
			if !record.Revoked.IsZero() && !r.keyRevoked(id) {
				r.revokeKey(id)
			}
		}
		return err
	})
	r.mu.Lock()
	holders := slices.Clone(r.holders)
	r.mu.Unlock()
	for _, a := range holders {
		a.issuer.Load().lookAtKeys(context.Background())
	}
}

// lookAtKeys settles the keys now.
func (i *Issuer) lookAtKeys(ctx context.Context) {
	defer i.lockKeys()()
	if err := i.settleKeys(ctx, i.registry.now()); err != nil {
		keyLog().Error("looking at the signing keys: they stay as they are", zap.Error(err))
	}
}

// keyOf returns the key of that id, also where another node has made it just now.
func (i *Issuer) keyOf(ctx context.Context, id string) (verifyKey, bool) {
	key, known := i.keys().verify[id]
	if known || i.registry.nodes == nil {
		return key, known
	}
	last, now := i.registry.nodes.asked.Load(), time.Now().UnixNano()
	if now-last < int64(askAgain) || !i.registry.nodes.asked.CompareAndSwap(last, now) {
		return key, false
	}
	i.lookAtKeys(context.WithoutCancel(ctx))
	key, known = i.keys().verify[id]
	return key, known
}

// livesTooLong reports whether no node has issued a token of that lifetime.
func (r *registry) livesTooLong(ctx context.Context, lifetime time.Duration) (bool, error) {
	if lifetime <= r.longestLifetime() {
		return false, nil
	}
	if r.nodes == nil {
		return true, nil
	}
	if _, err := r.readMark(ctx); err != nil {
		return false, err
	}
	return lifetime > r.longestLifetime(), nil
}

// retry does something until it succeeds or the store closes.
func (r *registry) retry(what string, do func(context.Context) error) {
	for failed := 0; ; failed++ {
		err := do(context.Background())
		if err == nil || errors.Is(err, store.ErrClosed) {
			return
		}
		if failed == 0 {
			nodeLog().Error(what, zap.Error(err))
		}
		select {
		case <-r.stop:
			return
		case <-time.After(tryAgain):
		}
	}
}

// usedAssertionPrefix is that of used_assertion/<when to remove it>/<hash>.
const usedAssertionPrefix = "used_assertion/"

func usedAssertionKey(hash string, expires time.Time) string {
	return fmt.Sprintf("%s%020d/%s", usedAssertionPrefix, expires.Add(clockSetBack).Unix(), hash)
}

// useOnce durably notes that an assertion was used, and reports whether it is the
// first time on all nodes.
func (n *nodes) useOnce(ctx context.Context, hash string, expires time.Time) (first bool, err error) {
	key := usedAssertionKey(hash, expires)
	err = n.Commit(ctx, store.Batch{Conditions: []store.Condition{{Key: key}}, Puts: []store.Record{{Key: key}}})
	if errors.Is(err, store.ErrConflict) {
		return false, nil
	}
	return err == nil, err
}

// expiredAssertions returns the batch that forgets used assertions that have
// expired: all, or the first ones.
func (r *registry) expiredAssertions(ctx context.Context, now time.Time) (batch store.Batch, err error) {
	if r.nodes != nil {
		batch.Deletes, err = r.dueBefore(ctx, usedAssertionPrefix, fmt.Sprintf("%s%020d/", usedAssertionPrefix, now.Unix()), sweepBatch)
	}
	return batch, err
}

func (n *nodes) remember(c *Credential, lifetime time.Duration) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if before, known := n.ended[c.ClientID]; !known || before.Version < c.Version {
		n.ended[c.ClientID] = endedCredential{c, time.Now().Add(lifetime)}
	}
}

func (n *nodes) rememberToken(key string, record revocation) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.endedTokens[key] = record
}

// latest returns the credential, or what is remembered of it, where that is later.
func (n *nodes) latest(c *Credential) *Credential {
	if n == nil {
		return c
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if ended, known := n.ended[c.ClientID]; known && ended.Version > c.Version {
		return ended.Credential
	}
	return c
}

// remembersToken reports whether a token is known to be revoked by itself.
func (n *nodes) remembersToken(key string) bool {
	if n == nil {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	_, known := n.endedTokens[key]
	return known
}

// forget drops what no token depends on any more.
func (n *nodes) forget(now time.Time) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, c := range n.ended {
		if now.After(c.until) {
			delete(n.ended, id)
		}
	}
	for key, record := range n.endedTokens {
		if now.After(record.KeepUntil) {
			delete(n.endedTokens, key)
		}
	}
}

// restoreEnded durably has the store know again what is remembered.
func (r *registry) restoreEnded(ctx context.Context) error {
	r.nodes.mu.Lock()
	var credentials []*Credential
	for _, c := range r.nodes.ended {
		credentials = append(credentials, c.Credential)
	}
	var batch store.Batch
	for key, record := range r.nodes.endedTokens {
		value, err := json.Marshal(record)
		if err != nil {
			r.nodes.mu.Unlock()
			return err
		}
		key = revokedTokenPrefix + key
		batch.Puts = append(batch.Puts, store.Record{Key: key, Value: value}, store.Record{Key: revokedUntilKey(key, record.KeepUntil)})
	}
	r.nodes.mu.Unlock()
	batch.Urgent = true
	if err := r.store.Commit(ctx, batch); err != nil {
		return err
	}
	for _, c := range credentials {
		if err := r.restoreCredential(ctx, c); err != nil {
			return err
		}
	}
	nodeLog().Info("wrote again what has ended rights", zap.Int("credentials", len(credentials)), zap.Int("tokens", len(batch.Puts)/2))
	return nil
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
		case before.Version < remembered.Version:
			after = *remembered
			after.Version-- // putChange raises it
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
			err = r.commit(ctx, batch, written)
		}
		if !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
}

func nodeLog() *zap.Logger { return caddy.Log().Named("client_credentials.nodes") }

// Interface guards
var _ store.Follower = (*registry)(nil)
