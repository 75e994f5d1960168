package issuer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// Several servers can share a store, as its nodes. What one of them commits, the
// others are told of, and only then does a change that ends rights return. What a
// node remembers counts for as long as it hears from the store.

// nodes is what a registry has of a store that is shared; nil for any other.
type nodes struct {
	store.Shared

	// asking is held by who reads the keys because a token came of an unknown one.
	asking    sync.Mutex
	asked     time.Time // when that was last done in vain; guarded by asking, as the next
	askFailed error     // how that ended

	ended endedRights
}

const (
	// askAgain bounds how often tokens of keys that do not exist have the keys read.
	askAgain = time.Second
	// awaitPatience is for a database that goes away after it has taken a change:
	// longer than any lease.
	awaitPatience = 90 * time.Second
	// staleRound is how often it is looked whether the node is stale, for streams.
	staleRound = 100 * time.Millisecond
	// tryAgain is how long to wait after the store could not be read.
	tryAgain = 200 * time.Millisecond
	// readAtOnce is how many records are read at the same time of those that another
	// node has changed: as many as a pool of the default size has connections.
	readAtOnce = 4
)

// follow has the registry told of what all nodes commit. It returns when all is
// known that was committed before.
func (r *registry) follow(ctx context.Context, shared store.Shared) error {
	r.nodes = &nodes{Shared: shared, ended: newEndedRights()}
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

// endStreamsWhenStale ends all that is under way by a token while this node is stale,
// until the registry is closed: elsewhere, a revocation returns then. What begins just
// as the node becomes stale is met by the next round.
func (r *registry) endStreamsWhenStale() {
	ticker := time.NewTicker(staleRound)
	defer ticker.Stop()
	for {
		select {
		case <-r.stop:
			return
		case <-ticker.C:
		}
		if r.stale() == nil {
			continue
		}
		for n := range r.watches {
			r.watches[n].tell(r)
		}
	}
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
	for {
		restores, restored := r.nodes.ended.restoring()
		if restored == nil {
			if err := r.nodes.Await(ctx); err != nil {
				return fmt.Errorf("waiting for the other nodes: %w", err)
			}
			if now, _ := r.nodes.ended.restoring(); now == restores {
				return nil
			}
			continue
		}
		// The database has lost the change, or others: it is on its way there again.
		select {
		case <-restored:
		case <-r.stop:
			return store.ErrClosed
		case <-ctx.Done():
			return fmt.Errorf("waiting for the database to know again what has ended rights: %w", ctx.Err())
		}
	}
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
	switch {
	case urgent:
		// Who has ended rights may be answered once this node is known to have come
		// to it. From then on the node must know it, whatever becomes of the database.
		r.catchUp(credentials, tokens, true)
	case len(credentials) > 0: // most commits of a busy store are of last uses
		go r.catchUp(credentials, nil, false)
	}
}

// ChangedAnything implements store.Follower.
func (r *registry) ChangedAnything(lost bool) {
	for group := range r.changes {
		r.changes[group].Add(1)
	}
	r.keysChanged()
	restored := func() {}
	if lost {
		nodeLog().Warn("the database has lost what it had acknowledged, or is another one: writing again what has ended rights")
		restored = r.nodes.ended.beginToRestore()
	}
	go func() {
		if lost && r.retry("writing again what has ended rights", r.restoreEnded) {
			restored()
		}
		for n := range r.watches {
			r.catchUp(r.watches[n].clients(), nil, false)
		}
	}()
}

// catchUp tells the streams of credentials that were changed, and remembers what
// urgent changes have ended. It returns when all of that was read.
func (r *registry) catchUp(credentials, tokens []string, urgent bool) {
	var reading errgroup.Group
	reading.SetLimit(readAtOnce)
	read := func(what string, do func(context.Context) error) {
		reading.Go(func() error {
			r.retry(what, do)
			return nil
		})
	}
	for _, clientID := range credentials {
		list := r.watchList(r.group(clientID))
		if !urgent && !list.watched() {
			continue
		}
		read("reading a credential that another node has changed", func(ctx context.Context) error {
			c, err := r.read(ctx, clientID)
			if err != nil {
				return unlessWorthless(err)
			}
			list.credentialChanged(r, c)
			if urgent {
				r.nodes.remember(c, r.longestLifetime()+clockMargin)
			}
			return nil
		})
	}
	for _, revoked := range tokens {
		clientID, id, _ := strings.Cut(revoked, "/")
		if r.nodes.remembersToken(revoked) { // as after it was written again
			r.watchList(r.group(clientID)).tokenRevoked(r, clientID, id)
			continue
		}
		read("reading a token that another node has revoked", func(ctx context.Context) error {
			record, err := r.readRevocation(ctx, clientID, id)
			if err != nil {
				return unlessWorthless(err)
			}
			r.watchList(r.group(clientID)).tokenRevoked(r, clientID, id)
			r.nodes.rememberToken(revoked, record)
			return nil
		})
	}
	_ = reading.Wait()
}

// unlessWorthless returns nil for a record that is gone, or that nobody can read: no
// token counts by it, and to read it again would not help.
func unlessWorthless(err error) error {
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrCorrupt) || errors.Is(err, errUnreadable) {
		return nil
	}
	return err
}

// keysChanged has revoked keys count, and has each configuration look at the keys
// anew. It returns only when it could read which are revoked: until then, this node
// is not to be taken for one that knows.
func (r *registry) keysChanged() {
	r.retry("reading which signing keys are revoked", func(ctx context.Context) error {
		records, _, err := readKeyRecords(ctx, r.store)
		r.revokeKeys(records)
		return err
	})
	r.mu.Lock()
	holders := slices.Clone(r.holders)
	r.mu.Unlock()
	for _, a := range holders {
		_ = a.issuer.Load().lookAtKeys(context.Background())
	}
}

// lookAtKeys settles the keys now. Where that fails, they stay as they are.
func (i *Issuer) lookAtKeys(ctx context.Context) error {
	defer i.lockKeys()()
	err := i.settleKeys(ctx, i.registry.now())
	if err != nil {
		keyLog().Error("looking at the signing keys: they stay as they are", zap.Error(err))
	}
	return err
}

// keyOf returns the key of that id, also where another node has made it just now. It
// returns an error where this node cannot tell whether there is such a key.
func (i *Issuer) keyOf(ctx context.Context, id string) (key verifyKey, known bool, err error) {
	key, known = i.keys().verify[id]
	n := i.registry.nodes
	if known || n == nil || i.registry.keyRevoked(id) {
		return key, known, nil
	}
	if err := n.Stale(); err != nil { // it may have been made since
		return key, false, err
	}
	n.asking.Lock() // for who comes meanwhile, the same answer is right
	defer n.asking.Unlock()
	if key, known = i.keys().verify[id]; !known && time.Since(n.asked) >= askAgain {
		n.askFailed = i.lookAtKeys(context.WithoutCancel(ctx))
		if key, known = i.keys().verify[id]; !known { // else it was worth it
			n.asked = time.Now()
		}
	}
	if !known && n.askFailed != nil {
		return key, false, fmt.Errorf("looking for a signing key: %w", n.askFailed)
	}
	return key, known, nil
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

// retry does something until it succeeds, which it reports, or the store closes.
func (r *registry) retry(what string, do func(context.Context) error) (done bool) {
	for failed := 0; ; failed++ {
		err := do(context.Background())
		if err == nil || errors.Is(err, store.ErrClosed) {
			return err == nil
		}
		if failed == 0 {
			nodeLog().Error(what, zap.Error(err))
		}
		select {
		case <-r.stop:
			return false
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

func nodeLog() *zap.Logger { return caddy.Log().Named("client_credentials.nodes") }

// Interface guards
var _ store.Follower = (*registry)(nil)
