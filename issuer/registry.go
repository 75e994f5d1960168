package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/internal/lru"
	"github.com/clientcredentials/caddy-client-credentials/store"
)

// registry is the memory of one store: what its credentials are worth now. All
// configurations that use the store share it, so that a change made through one
// counts in all.
//
// There is at most one state for each credential, and it lives for as long as
// anybody refers to it: a cached token, a request, the list of those used last,
// or a revocation that must be remembered. So whoever holds a state sees every
// change, and memory follows what is used, not what exists.
type registry struct {
	store store.Store

	seed   maphash.Seed
	shards [64]registryShard

	recent *lru.Cache[string, *state] // keeps credentials in memory that are in use

	mu      sync.Mutex
	revoked map[string]remembered      // by client id
	tokens  map[string]rememberedToken // revoked one by one, by the keys of their records
	mark    time.Duration              // the longest that any token of this store lives
	used    map[string]time.Time       // assertions that were used, until they expire

	opened time.Time // to the second, as assertions are dated

	stop chan struct{}
	done sync.WaitGroup
}

type registryShard struct {
	mu     sync.Mutex
	states map[string]weak.Pointer[state]
	// changes counts the changes applied in this shard: a reading of the store
	// that began before one of them may be older than it.
	changes uint64
}

// state is the present of one credential.
type state struct {
	credential atomic.Pointer[Credential]
	// tokens are those of its tokens that were revoked one by one; nil for most
	// credentials.
	tokens atomic.Pointer[tokenSet]
}

// tokenSet is a set of tokens by their ids.
type tokenSet struct {
	mu  sync.RWMutex
	ids map[string]struct{}
}

// remembered is a revocation that is kept in memory, because tokens may still
// live that it must refuse, until keepUntil.
type remembered struct {
	state     *state
	keepUntil time.Time
}

// rememberedToken keeps in memory that a single token is revoked: the state of
// its credential lives for as long.
type rememberedToken struct {
	state     *state
	id        string
	keepUntil time.Time
}

// revocation is the record that tells, after a restart, which credentials to
// remember.
type revocation struct {
	KeepUntil time.Time `json:"keep_until"`
}

const (
	markKey = "token_lifetime_mark"
	// clockMargin is what the clock may be set back by without harm to tokens
	// that were issued before.
	clockMargin   = time.Minute
	sweepInterval = time.Minute
	// sweepBatch keeps what one transaction deletes well below what the store
	// takes in one.
	sweepBatch = 1000
	// recentCredentials is how many credentials are kept in memory because they
	// were used last; some 600 bytes each.
	recentCredentials = 10_000
)

func openRegistry(ctx context.Context, st store.Store, recent int) (*registry, error) {
	r := &registry{
		store:   st,
		seed:    maphash.MakeSeed(),
		recent:  lru.New[string, *state](int64(recent)),
		revoked: make(map[string]remembered),
		tokens:  make(map[string]rememberedToken),
		used:    make(map[string]time.Time),
		opened:  time.Now().Truncate(time.Second),
		stop:    make(chan struct{}),
	}
	for i := range r.shards {
		r.shards[i].states = make(map[string]weak.Pointer[state])
	}
	if err := r.readMark(ctx); err != nil {
		return nil, err
	}
	if err := r.readRevocations(ctx); err != nil {
		return nil, err
	}
	if err := r.readRevokedTokens(ctx); err != nil {
		return nil, err
	}
	if err := r.sweep(ctx, time.Now()); err != nil {
		return nil, err
	}
	r.done.Go(r.sweepUntilClosed)
	return r, nil
}

// close ends what the registry does by itself. The store is not its to close.
func (r *registry) close() {
	close(r.stop)
	r.done.Wait()
}

// state returns the state of a credential, from memory or else from the store.
// It returns store.ErrNotFound where there is no such credential.
func (r *registry) state(ctx context.Context, clientID string) (*state, error) {
	if !validClientID(clientID) {
		return nil, store.ErrNotFound
	}
	shard := r.shard(clientID)
	for {
		shard.mu.Lock()
		st, seen := shard.get(clientID), shard.changes
		shard.mu.Unlock()
		if st == nil {
			credential, err := r.read(ctx, clientID)
			if err != nil {
				return nil, err
			}
			if st = shard.intern(clientID, credential, seen); st == nil {
				continue // changed while it was read: read again
			}
		}
		r.recent.Put(clientID, st, 1)
		return st, nil
	}
}

// apply makes a change that the store has durably taken count in memory.
// Whatever the order in which changes arrive, the latest version stays.
func (r *registry) apply(c *Credential) *state {
	shard := r.shard(c.ClientID)
	shard.mu.Lock()
	defer shard.mu.Unlock()
	shard.changes++
	st := shard.get(c.ClientID)
	if st == nil {
		return shard.add(c)
	}
	if c.Version > st.credential.Load().Version {
		st.credential.Store(c)
	}
	return st
}

// remember keeps the state of a revoked credential in memory.
func (r *registry) remember(clientID string, st *state, until time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.revoked[clientID] = remembered{st, until}
}

// rememberToken makes the durable revocation of a single token count in memory.
func (r *registry) rememberToken(key, id string, st *state, until time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tokens[key] = rememberedToken{st, id, until}
	set := st.tokens.Load()
	if set == nil {
		set = &tokenSet{ids: make(map[string]struct{})}
		st.tokens.Store(set)
	}
	set.mu.Lock()
	defer set.mu.Unlock()
	set.ids[id] = struct{}{}
}

// hasRevoked reports whether the token of that id was revoked by itself.
func (s *state) hasRevoked(id string) bool {
	set := s.tokens.Load()
	if set == nil {
		return false
	}
	set.mu.RLock()
	defer set.mu.RUnlock()
	_, revoked := set.ids[id]
	return revoked
}

func (s *state) forgetToken(id string) {
	set := s.tokens.Load()
	set.mu.Lock()
	defer set.mu.Unlock()
	delete(set.ids, id)
}

// keepUntil returns when the last token that was obtained before now has
// expired, whatever the configuration that it was obtained under.
func (r *registry) keepUntil(now time.Time) time.Time {
	return now.Add(r.longestLifetime() + clockMargin).UTC()
}

// longestLifetime returns the longest that any token of this store lives.
func (r *registry) longestLifetime() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mark
}

// raiseMark durably notes that tokens live for lifetime, before the first one
// that does is signed. It returns the longest that any token lives.
func (r *registry) raiseMark(ctx context.Context, lifetime time.Duration) (time.Duration, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if lifetime <= r.mark {
		return r.mark, nil
	}
	value, err := json.Marshal(lifetime)
	if err != nil {
		return 0, err
	}
	if err := r.store.Commit(ctx, store.Batch{Puts: []store.Record{{Key: markKey, Value: value}}}); err != nil {
		return 0, err
	}
	r.mark = lifetime
	return lifetime, nil
}

func (r *registry) readMark(ctx context.Context) error {
	value, err := r.store.Get(ctx, markKey)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(value, &r.mark)
}

func (r *registry) readRevocations(ctx context.Context) error {
	all, err := r.scanRevocations(ctx, revokedPrefix)
	if err != nil {
		return err
	}
	for key, until := range all {
		clientID := key[len(revokedPrefix):]
		st, err := r.state(ctx, clientID)
		if err != nil {
			return err
		}
		r.revoked[clientID] = remembered{st, until}
	}
	return nil
}

func (r *registry) readRevokedTokens(ctx context.Context) error {
	all, err := r.scanRevocations(ctx, revokedTokenPrefix)
	if err != nil {
		return err
	}
	for key, until := range all {
		clientID, id, _ := strings.Cut(key[len(revokedTokenPrefix):], "/")
		st, err := r.state(ctx, clientID)
		if err != nil {
			return err
		}
		r.rememberToken(key, id, st, until)
	}
	return nil
}

// scanRevocations returns until when to keep each revocation, by its key.
func (r *registry) scanRevocations(ctx context.Context, prefix string) (map[string]time.Time, error) {
	all := make(map[string]time.Time)
	err := r.store.Scan(ctx, prefix, func(key string, value []byte) error {
		var rev revocation
		if err := json.Unmarshal(value, &rev); err != nil {
			return fmt.Errorf("the record of a revocation can't be read: %w", err)
		}
		all[key] = rev.KeepUntil
		return nil
	})
	return all, err
}

func (r *registry) sweepUntilClosed() {
	ticker := time.NewTicker(sweepInterval)
	defer ticker.Stop()
	for {
		select {
		case <-r.stop:
			return
		case now := <-ticker.C:
			if err := r.sweep(context.Background(), now); err != nil {
				// The logger of a configuration may be closed: this outlives them.
				caddy.Log().Named("client_credentials").Error("removing revocation marks that no token needs any more", zap.Error(err))
			}
		}
	}
}

// sweep forgets the revocations whose last token has expired, and with it what
// would refuse it. The credentials stay revoked in the store.
func (r *registry) sweep(ctx context.Context, now time.Time) error {
	due := r.forgetDue(now)
	for batch := range slices.Chunk(due, sweepBatch) {
		if err := r.store.Commit(ctx, store.Batch{Deletes: batch}); err != nil {
			return err
		}
	}
	return nil
}

// forgetDue drops them from memory, and returns their keys in the store.
func (r *registry) forgetDue(now time.Time) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var due []string
	for clientID, kept := range r.revoked {
		if now.After(kept.keepUntil) {
			delete(r.revoked, clientID)
			due = append(due, revocationKey(clientID))
		}
	}
	for key, kept := range r.tokens {
		if now.After(kept.keepUntil) {
			delete(r.tokens, key)
			kept.state.forgetToken(kept.id)
			due = append(due, key)
		}
	}
	maps.DeleteFunc(r.used, func(_ string, until time.Time) bool { return now.After(until) })
	return due
}

func (r *registry) read(ctx context.Context, clientID string) (*Credential, error) {
	value, err := r.store.Get(ctx, credentialKey(clientID))
	if err != nil {
		return nil, err
	}
	return decodeCredential(value)
}

func (r *registry) shard(clientID string) *registryShard {
	return &r.shards[maphash.String(r.seed, clientID)%uint64(len(r.shards))]
}

// get returns the state if anybody still refers to it. The shard is locked.
func (s *registryShard) get(clientID string) *state {
	return s.states[clientID].Value()
}

// intern returns the one state of a credential that was read from the store,
// or nil where a change was applied since the reading began.
func (s *registryShard) intern(clientID string, c *Credential, seen uint64) *state {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st := s.get(clientID); st != nil {
		return st
	}
	if s.changes != seen {
		return nil
	}
	return s.add(c)
}

// add makes a state. The shard is locked.
func (s *registryShard) add(c *Credential) *state {
	st := new(state)
	st.credential.Store(c)
	s.states[c.ClientID] = weak.Make(st)
	runtime.AddCleanup(st, s.forget, c.ClientID)
	return st
}

// forget drops the entry of a state that nobody refers to any more.
func (s *registryShard) forget(clientID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, known := s.states[clientID]; known && p.Value() == nil {
		delete(s.states, clientID)
	}
}
