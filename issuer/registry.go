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
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/internal/bytecache"
	"github.com/clientcredentials/caddy-client-credentials/store"
)

// registry is the memory of one store: what its credentials are worth now. All
// configurations that use the store share it, so that a change made through one
// counts in all.
//
// What it remembers of a credential counts for as long as no change has been
// applied since it was read. So memory and start-up follow what is used, not what
// exists, and nothing has to be found and mended when a credential changes.
type registry struct {
	store store.Store
	nodes *nodes // nil where no other process has the store open

	seed    maphash.Seed
	changes [changeGroups]atomic.Uint64
	watches [watchLists]watchList
	aging   atomic.Bool // somebody is going to look whether watches last

	credentials *credentialCache
	foreign     *foreignSecrets

	verified *bytecache.Cache // tokens whose signature is good, whether they still count or not
	// signatureChecks holds a place for each check that is under way.
	signatureChecks chan struct{}

	uses   *uses
	limits *limiters

	retention atomic.Int64 // how long ended credentials are kept after their last token; a time.Duration

	mu   sync.Mutex
	mark time.Duration        // the longest that any token of this store lives
	used map[string]time.Time // assertions that were used, until they can't be good any more
	// holders are the configurations that hold the store, in the order in which
	// they came: one that fails while it starts goes before the one that it was to
	// replace.
	holders []*App
	// speakers are those that hold the store or are about to.
	speakers []*App

	opened  time.Time // to the second, as assertions are dated
	started time.Time // the same, by the clock that can't be set

	// refusedExpiry is the latest expiry, in Unix milliseconds, of all tokens that were
	// refused as expired. None that had been issued with such an expiry is accepted
	// again, whatever the clock is set to.
	refusedExpiry atomic.Int64

	// creating is held by each who creates a credential for another one, and by who
	// looks for the last of those that are to be revoked.
	creating sync.RWMutex

	settling sync.Mutex // held by who changes the keys, or reads them anew
	master   masterKey  // the one that the store is sealed with; guarded by settling

	counted countedCredentials
	herald  herald

	published   map[string]time.Duration // for how long the store was open when a key was first published; guarded by mu
	revokedKeys atomic.Pointer[map[string]bool]

	stop chan struct{}
	done sync.WaitGroup
}

const (
	markKey = "token_lifetime_mark"
	// clockMargin is what the clock may be set back by without harm to tokens
	// that were issued before.
	clockMargin = time.Minute
	// clockSetBack is what the clock may be set back by without harm to what was
	// refused before.
	clockSetBack = time.Hour
	// credentialShare is how much memory credentials may take for each byte of
	// tokens: as many have room, or more.
	credentialShare = 2 // 1/2
	// changeGroups is into how many groups credentials fall by a hash. A change of
	// one has what is remembered of its group be read again.
	changeGroups = 1 << 16
)

func openRegistry(ctx context.Context, st store.Store, shared store.Shared) (*registry, error) {
	r := &registry{
		store:       st,
		seed:        maphash.MakeSeed(),
		credentials: newCredentialCache(),
		foreign:     newForeignSecrets(max(1, runtime.GOMAXPROCS(0)/2)),

		verified: bytecache.New(), // which adjust gives its size
		// The other half of the processors is for requests that need no check.
		signatureChecks: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),

		uses:      newUses(),
		limits:    newLimiters(),
		used:      make(map[string]time.Time),
		opened:    time.Now().Truncate(time.Second),
		started:   time.Now(),
		published: make(map[string]time.Duration),
		herald:    newHerald(),
		stop:      make(chan struct{}),
	}
	r.retention.Store(int64(DefaultRetention))
	if shared != nil {
		if err := r.follow(ctx, shared); err != nil {
			return nil, err
		}
	}
	if err := migrate(ctx, st); err != nil {
		return nil, err
	}
	if _, err := r.readMark(ctx); err != nil {
		return nil, err
	}
	r.done.Go(r.sweepUntilClosed)
	r.done.Go(r.flushUsesUntilClosed)
	if r.nodes != nil {
		r.done.Go(r.endStreamsWhenStale)
	}
	go r.tellUntilClosed() //nolint:gosec,contextcheck // it outlives the request that opens the store
	return r, nil
}

// close ends what the registry does by itself. The store is not its to close.
func (r *registry) close() {
	close(r.stop)
	r.done.Wait()
	select {
	case <-r.herald.ended:
	case <-time.After(lastEvents):
	}
	r.verified.Close()
	r.credentials.packed.Close()
}

// join has the logs and the events of a configuration tell of changes when its
// turn comes, until it lets go.
func (r *registry) join(a *App) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.speakers = append(r.speakers, a)
}

// hold has the settings of a configuration count, until it lets go: those of the store
// when who held it before has let go.
func (r *registry) hold(a *App) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.holders = append(r.holders, a)
	r.adjust()
	if len(r.holders) == 1 {
		r.adopt()
	}
}

func (r *registry) letGo(a *App) {
	r.mu.Lock()
	defer r.mu.Unlock()
	isIt := func(other *App) bool { return other == a }
	r.holders, r.speakers = slices.DeleteFunc(r.holders, isIt), slices.DeleteFunc(r.speakers, isIt)
	r.adjust()
	r.adopt()
}

// adopt has the store have the settings of the first holder: one that is to replace it
// may fail yet. The registry is locked.
func (r *registry) adopt() {
	if r.nodes != nil && len(r.holders) > 0 {
		r.nodes.Adopt(r.holders[0].engine)
	}
}

// lastHolder returns the configuration that has come last, or nil.
func (r *registry) lastHolder() *App {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.holders) == 0 {
		return nil
	}
	return r.holders[len(r.holders)-1]
}

func (r *registry) isHeld() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.holders) > 0
}

// speaker returns the configuration whose logs and events tell of changes: the
// one that runs, or else one that begins or ends to; or nil.
func (r *registry) speaker() *App {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.speakers {
		if !a.stopped.Load() {
			return a
		}
	}
	if len(r.speakers) > 0 {
		return r.speakers[0]
	}
	return nil
}

// adjust follows the settings of the holders. What is removed is gone, so that
// takes all of them. The registry is locked.
func (r *registry) adjust() {
	if len(r.holders) == 0 {
		return // it closes
	}
	retention := time.Duration(0)
	for _, a := range r.holders {
		retention = max(retention, time.Duration(a.Retention))
	}
	r.retention.Store(int64(retention))
	r.resizeCaches(r.holders[len(r.holders)-1].TokenCache)
}

func (r *registry) resizeCaches(tokens int64) {
	err := errors.Join(r.verified.Resize(tokens), r.credentials.packed.Resize(tokens/credentialShare))
	if err != nil {
		caddy.Log().Named("client_credentials").Error(
			"no memory for token_cache: what it would remember is checked, or read, each time", zap.Error(err))
	}
}

// credential returns a credential, from memory or else from the store, and how
// many changes its group had seen before it was read. It returns
// store.ErrNotFound where there is none of that client.
func (r *registry) credential(ctx context.Context, clientID string) (remembered, error) {
	if !validClientID(clientID) {
		return remembered{}, store.ErrNotFound
	}
	group := r.group(clientID)
	seen := r.changes[group].Load()
	if known, ok := r.credentials.get(group, clientID, seen); ok {
		return known, nil
	}
	c, ok := r.credentials.unpack(clientID, seen)
	if !ok {
		var err error
		if c, _, err = r.readStored(ctx, clientID, seen); err != nil {
			return remembered{}, err
		}
	}
	now := remembered{r.nodes.latest(c), seen}
	r.credentials.put(group, now)
	return now, nil
}

// stored returns what the store has of a credential, and its text there: from
// memory, if no change was applied since it was read.
func (r *registry) stored(ctx context.Context, clientID string) (*Credential, []byte, error) {
	seen := r.changes[r.group(clientID)].Load()
	if c, text, ok := r.credentials.stored(clientID, seen); ok {
		return c, text, nil
	}
	return r.readStored(ctx, clientID, seen)
}

// readStored reads a credential, and remembers it.
func (r *registry) readStored(ctx context.Context, clientID string, changes uint64) (*Credential, []byte, error) {
	text, err := r.store.Get(ctx, credentialKey(clientID))
	if err != nil {
		return nil, nil, err
	}
	c, err := decodeCredential(text)
	if err != nil {
		return nil, nil, err
	}
	r.credentials.putPacked(clientID, changes, c, text)
	return c, text, nil
}

// commit has the store durably take what the batch makes of credentials, and has
// that count in memory, on all nodes where it ends rights; also where it fails, as
// the disk may have taken it before that. It returns store.ErrConflict and
// store.ErrFull where it has taken nothing.
func (r *registry) commit(ctx context.Context, batch store.Batch, changed ...*Credential) error {
	err := r.store.Commit(ctx, batch)
	if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrFull) {
		return err
	}
	for _, c := range changed {
		r.apply(c)
		if err == nil && batch.Urgent { // else the feed tells, if it was carried out
			r.nodes.remember(c, r.longestLifetime()+clockMargin)
		}
	}
	if err == nil && batch.Urgent {
		err = r.await(ctx)
	}
	return err
}

// found does for a credential that needs no change, as it is in the store, what commit
// does: the disk, or another node, may have taken a revocation, and failed after that.
func (r *registry) found(ctx context.Context, c *Credential) error {
	r.apply(c)
	r.nodes.remember(c, r.longestLifetime()+clockMargin)
	return r.await(ctx)
}

// apply makes a change that the store has durably taken count in memory.
func (r *registry) apply(c *Credential) {
	group := r.group(c.ClientID)
	r.changes[group].Add(1) // before the look: who begins to watch after it sees the change
	if list := r.watchList(group); list.watched() {
		go list.credentialChanged(r, c)
	}
}

// revokeToken makes the durable revocation of a single token count in memory.
func (r *registry) revokeToken(t *Token) {
	group := r.group(t.ClientID)
	r.changes[group].Add(1)
	if list := r.watchList(group); list.watched() {
		go list.tokenRevoked(r, t.ClientID, t.ID)
	}
}

// tokenRevoked reads whether a token was revoked by itself.
func (r *registry) tokenRevoked(ctx context.Context, t *Token) (bool, error) {
	_, err := r.store.Get(ctx, revokedTokenKey(t.ClientID, t.ID))
	if errors.Is(err, store.ErrNotFound) {
		return r.nodes.remembersToken(t.ClientID + "/" + t.ID), nil
	}
	return err == nil, err
}

// readRevocation returns what the store has of a token that was revoked by itself.
func (r *registry) readRevocation(ctx context.Context, clientID, id string) (record revocation, err error) {
	value, err := r.store.Get(ctx, revokedTokenKey(clientID, id))
	if err != nil {
		return record, err
	}
	if err := json.Unmarshal(value, &record); err != nil {
		return record, fmt.Errorf("a revoked token's %w: %w", errUnreadable, err)
	}
	return record, nil
}

// revokeKey makes the durable revocation of a signing key count in memory, in
// whatever configuration its tokens are under way.
func (r *registry) revokeKey(id string) {
	r.mu.Lock()
	revoked := map[string]bool{id: true}
	if before := r.revokedKeys.Load(); before != nil {
		maps.Copy(revoked, *before)
	}
	r.revokedKeys.Store(&revoked)
	r.mu.Unlock()
	for n := range r.watches {
		if list := &r.watches[n]; list.watched() {
			go list.tell(r)
		}
	}
}

// revokeKeys has those count as revoked of which the store says so.
func (r *registry) revokeKeys(records keyRecords) {
	for id, record := range records {
		if !record.Revoked.IsZero() && !r.keyRevoked(id) {
			r.revokeKey(id)
		}
	}
}

// keyRevoked reports whether the key was revoked, for all that is known here.
func (r *registry) keyRevoked(id string) bool {
	revoked := r.revokedKeys.Load()
	return revoked != nil && (*revoked)[id]
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
	for {
		before, err := r.readMark(ctx)
		if err != nil {
			return 0, err
		}
		if mark := r.longestLifetime(); lifetime <= mark {
			return mark, nil
		}
		var batch store.Batch
		if err := replace(&batch, markKey, before, lifetime); err != nil {
			return 0, err
		}
		// Where somebody else has raised it at the same time, that may be enough.
		if err := r.store.Commit(ctx, batch); err != nil && !errors.Is(err, store.ErrConflict) {
			return 0, err
		}
	}
}

// readMark has memory follow the store, and returns what that has.
func (r *registry) readMark(ctx context.Context) (value []byte, err error) {
	value, err = r.store.Get(ctx, markKey)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	var mark time.Duration
	if err == nil {
		err = json.Unmarshal(value, &mark)
	}
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mark = max(r.mark, mark)
	return value, nil
}

func (r *registry) read(ctx context.Context, clientID string) (*Credential, error) {
	value, err := r.store.Get(ctx, credentialKey(clientID))
	if err != nil {
		return nil, err
	}
	c, err := decodeCredential(value)
	if err != nil {
		return nil, err
	}
	return r.nodes.latest(c), nil
}

// group returns that of a credential.
func (r *registry) group(clientID string) uint16 {
	return uint16(maphash.String(r.seed, clientID) % changeGroups)
}

func (r *registry) watchList(group uint16) *watchList { return &r.watches[group%watchLists] }
