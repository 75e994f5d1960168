package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// Use is when a credential was last used to authenticate; the zero value, where it
// never was.
type Use struct {
	At      time.Time
	secrets map[string]time.Time // by their ids
}

// Secret returns when the secret of that id was last used; zero for never.
func (u Use) Secret(id string) time.Time { return u.secrets[id] }

// LastUse returns when a credential was last used. What a crash has lost of that is
// of its last minute, or more where many clients come in each: see useShare.
func (i *Issuer) LastUse(ctx context.Context, c *Credential) (Use, error) {
	var record useRecord
	i.registry.uses.addTo(&record, c) // first: what is written meanwhile is in both
	_, stored, err := readUse(ctx, i.store, c.ClientID)
	if err != nil {
		return Use{}, fmt.Errorf("reading the last use of a credential: %w", err)
	}
	record.merge(stored)
	u := Use{secrets: make(map[string]time.Time, len(record.Secrets))}
	if record.At != 0 {
		u.At = time.UnixMilli(record.At)
	}
	for id, at := range record.Secrets {
		u.secrets[id] = time.UnixMilli(at)
	}
	return u, nil
}

// LastUses returns when each of the credentials was last used; zero for never.
func (i *Issuer) LastUses(ctx context.Context, credentials []*Credential) ([]time.Time, error) {
	all := make([]time.Time, len(credentials))
	for n, c := range credentials {
		u, err := i.LastUse(ctx, c)
		if err != nil {
			return nil, err
		}
		all[n] = u.At
	}
	return all, nil
}

const (
	usedPrefix = "used/" // used/<client id>

	// useInterval is for how long uses are collected before the store is told: so
	// often, at most, a credential's is written, and so much a crash can lose.
	useInterval = time.Minute
	// manyUses are so many that the store is told at once.
	manyUses = 50_000
	// maxUses bounds how many are collected, some 100 bytes each, beside as many that
	// are being written.
	maxUses = 500_000
	// useBatch is how many uses one transaction writes, at most.
	useBatch = 250
	// useShare is the part of all processors that the writing of uses may take,
	// however many credentials are in use: after each transaction it rests. With a
	// million credentials, one takes 16 ms, and what Badger does afterwards a fourth of
	// that, so that each processor gives some 100 uses a second. It gives fewer where
	// others keep it busy, or the disk is slow: to wait for them counts as to work, up
	// to longestUseRest.
	useShare       = 100 // 1/100
	useAfterwards  = 4   // 1/4
	longestUseRest = 10 * time.Second
	// sharedUseRest is enough where a store is shared, which works on processors of its
	// own: 750 uses a second.
	sharedUseRest = 300 * time.Millisecond
	// lastFlush bounds how long a store that closes waits for them: for some tens of
	// thousands.
	lastFlush = 10 * time.Second
)

// useRecord is what the store has of it, apart from the credential's record: a use
// changes no credential. Times are in milliseconds since 1970.
type useRecord struct {
	At      int64            `json:"at"`
	Secrets map[string]int64 `json:"secrets,omitempty"` // by their ids
}

func (r *useRecord) add(c *Credential, by useKey, at int64) {
	r.At = max(r.At, at)
	n := slices.IndexFunc(c.Hashes, func(h hashedSecret) bool { return h.Hash == by.hash && h.Slow == by.slow })
	if n >= 0 { // else it has used a key, or the secret is gone
		r.merge(useRecord{at, map[string]int64{c.Hashes[n].id(): at}})
	}
}

func (r *useRecord) merge(other useRecord) {
	r.At = max(r.At, other.At)
	if r.Secrets == nil {
		r.Secrets = make(map[string]int64)
	}
	for id, at := range other.Secrets {
		r.Secrets[id] = max(r.Secrets[id], at)
	}
}

// prune forgets secrets that the credential has no more.
func (r *useRecord) prune(c *Credential) {
	for id := range r.Secrets {
		if !slices.ContainsFunc(c.Hashes, func(h hashedSecret) bool { return h.id() == id }) {
			delete(r.Secrets, id)
		}
	}
}

// errUnreadable says that a record of the store is not what this package has written.
var errUnreadable = errors.New("record can't be read")

func usedKey(clientID string) string { return usedPrefix + clientID }

// readUse returns the record as it is stored, too: nil where there is none.
func readUse(ctx context.Context, st store.Store, clientID string) (value []byte, record useRecord, err error) {
	value, err = st.Get(ctx, usedKey(clientID))
	if errors.Is(err, store.ErrNotFound) {
		return nil, record, nil
	}
	if err == nil {
		if err = json.Unmarshal(value, &record); err != nil {
			err = fmt.Errorf("a last use's %w: %w", errUnreadable, err)
		}
	}
	return value, record, err
}

// uses are those that the store was not told of yet.
type uses struct {
	mu sync.Mutex
	// pending is by client and secret, so that a use is one entry however often it
	// happens. What is being written was pending before, and stays as it is.
	pending, writing collectedUses
	round            uint64 // how often what was pending has come to be written
	batch            int    // how many are written at once
	many             chan struct{}
	flushing         sync.Mutex
}

type collectedUses struct {
	useLog

	oldest  time.Time // when the first of them was noted
	written int       // up to where in the log the store knows them
}

// left reports whether the store does not know all of them.
func (c *collectedUses) left() bool { return c.written < len(c.entries) }

func (c *collectedUses) add(key useKey, at time.Time) {
	if c.len() == 0 {
		c.oldest = at
	}
	c.put(key, at.UnixMilli())
}

// useTimes has the time of the last use, in milliseconds since 1970.
type useTimes map[useKey]int64

func newUses() *uses {
	return &uses{pending: collectedUses{useLog: newUseLog()}, batch: useBatch, many: make(chan struct{}, 1)}
}

// note remembers a use. It is left to the next one where there are too many.
func (u *uses) note(clientID string, by hashedSecret, now time.Time) {
	key := useKey{clientID, by.Hash, by.Slow}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.pending.len() >= manyUses {
		select {
		case u.many <- struct{}{}:
		default:
		}
		if _, known := u.pending.find(key); !known && u.pending.len() >= maxUses {
			return
		}
	}
	u.pending.add(key, now)
}

// addTo adds to a record what the store does not know yet.
func (u *uses) addTo(record *useRecord, c *Credential) {
	u.mu.Lock()
	defer u.mu.Unlock()
	keys := []useKey{{clientID: c.ClientID}}
	for _, h := range c.Hashes {
		keys = append(keys, useKey{c.ClientID, h.Hash, h.Slow})
	}
	for _, collected := range []*collectedUses{&u.writing, &u.pending} {
		for _, key := range keys {
			if at := collected.get(key); at != 0 {
				record.add(c, key, at)
			}
		}
	}
}

// lag returns for how long the oldest use was not written.
func (u *uses) lag(now time.Time) time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.writing.left():
		return max(0, now.Sub(u.writing.oldest))
	case u.pending.left():
		return max(0, now.Sub(u.pending.oldest))
	}
	return 0
}

// lastRound returns the round after which all is written that is known now.
func (u *uses) lastRound() uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.pending.left() {
		return u.round + 1
	}
	return u.round
}

// done reports whether a round is over.
func (u *uses) done(round uint64) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.round > round || u.round == round && !u.writing.left()
}

// some returns a batch of those that are to be written next, by client, and up to
// where in the log they are.
func (u *uses) some() (byClient map[string]useTimes, end int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.writing.left() {
		u.writing, u.pending = u.pending, collectedUses{useLog: newUseLog()}
		u.round++
	}
	byClient = make(map[string]useTimes, useBatch)
	end = u.writing.written
	for n := 0; n < u.batch && end < len(u.writing.entries); n++ {
		at, key, next := u.writing.read(end)
		if byClient[key.clientID] == nil {
			byClient[key.clientID] = make(useTimes, 1)
		}
		byClient[key.clientID][key] = at
		end = next
	}
	return byClient, end
}

// wrote notes up to where in the log the store knows all.
func (u *uses) wrote(end int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.passed(end)
}

// conflicted has fewer be written at once, so that a credential that changes all the
// time is in nobody else's way. One that is alone is left to the next round.
func (u *uses) conflicted(byClient map[string]useTimes, end int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.batch > 1 {
		u.batch /= 2
		return
	}
	for _, times := range byClient {
		for key, at := range times {
			u.pending.add(key, time.UnixMilli(at))
		}
	}
	u.passed(end)
}

func (u *uses) passed(end int) {
	u.batch = useBatch
	if u.writing.written = end; !u.writing.left() {
		u.writing = collectedUses{}
	}
}

// flushUses durably tells the store of all uses until now.
func (r *registry) flushUses(ctx context.Context) error { return r.flushUsesWith(ctx, nil) }

// flushUsesWith does the same, and calls rest after each batch with the time that it
// has taken, for as long as that returns true.
func (r *registry) flushUsesWith(ctx context.Context, rest func(time.Duration) bool) error {
	for last := r.uses.lastRound(); !r.uses.done(last); {
		begun := time.Now()
		if err := r.flushSomeUses(ctx); err != nil {
			return err
		}
		if rest != nil && !rest(time.Since(begun)) {
			return nil
		}
	}
	return nil
}

func (r *registry) flushSomeUses(ctx context.Context) error {
	r.uses.flushing.Lock()
	defer r.uses.flushing.Unlock()
	byClient, end := r.uses.some()
	batch := store.Batch{Quiet: true} // every reader reads them in the store
	for clientID, times := range byClient {
		err := r.writeUse(ctx, clientID, times, &batch)
		if errors.Is(err, store.ErrCorrupt) || errors.Is(err, errUnreadable) { // which must not keep the others from being written
			caddy.Log().Named("client_credentials").Error("keeping when a credential was last used",
				zap.String("client_id", clientID), zap.Error(err))
			continue
		}
		if err != nil {
			return err
		}
	}
	err := r.store.Commit(ctx, batch)
	if err == nil {
		r.uses.wrote(end)
		return nil
	}
	if !errors.Is(err, store.ErrConflict) {
		return err
	}
	// A credential was changed at the same time, or removed since it is remembered:
	// again, with what the store has.
	for clientID := range byClient {
		r.credentials.packed.Drop(clientID)
	}
	r.uses.conflicted(byClient, end)
	return nil
}

// writeUse adds to the batch that a credential was used, if it is still there when
// that is carried out.
func (r *registry) writeUse(ctx context.Context, clientID string, times useTimes, batch *store.Batch) error {
	c, credential, err := r.stored(ctx, clientID)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	before, record, err := readUse(ctx, r.store, clientID)
	if err != nil {
		return err
	}
	from := c.entryByUse(record)
	for key, at := range times {
		record.add(c, key, at)
	}
	record.prune(c)
	reindex(batch, []string{from}, []string{c.entryByUse(record)})
	batch.Conditions = append(batch.Conditions, store.Condition{Key: credentialKey(clientID), Value: credential})
	return replace(batch, usedKey(clientID), before, record)
}

func (r *registry) flushUsesUntilClosed() {
	ticker := time.NewTicker(useInterval)
	defer ticker.Stop()
	many := r.uses.many
	for open := true; open; {
		ctx, cancel, rest := context.Background(), context.CancelFunc(func() {}), r.restFromUses
		select {
		case <-r.stop:
			open, rest = false, nil
			ctx, cancel = context.WithTimeout(ctx, lastFlush)
		case <-ticker.C:
		case <-many:
		}
		many = r.uses.many
		if err := r.flushUsesWith(ctx, rest); err != nil {
			// The logger of a configuration may be closed: this outlives them.
			caddy.Log().Named("client_credentials").Error("keeping when credentials were last used", zap.Error(err))
			many = nil // not with each use again, as long as the store takes nothing
		}
		cancel()
	}
}

// restFromUses leaves the processors to others after a batch that has taken so long.
// It reports whether to go on: not where the store closes.
func (r *registry) restFromUses(took time.Duration) bool {
	select {
	case <-r.stop:
		return false
	case <-time.After(r.useRest(took)):
		return true
	}
}

func (r *registry) useRest(took time.Duration) time.Duration {
	rest := useShare * (took + took/useAfterwards)
	if r.nodes != nil {
		return min(rest, sharedUseRest)
	}
	return min(rest/time.Duration(runtime.GOMAXPROCS(0)), longestUseRest)
}
