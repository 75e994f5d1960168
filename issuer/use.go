package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
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
// of its last minute.
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
	// maxUses bounds how many are collected, some 200 bytes each. When they are so
	// many, the store is told at once.
	maxUses = 50_000
	// useBatch is how many credentials' uses one transaction writes.
	useBatch = 250
	// lastFlush bounds how long a store that closes waits for them.
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

func usedKey(clientID string) string { return usedPrefix + clientID }

// readUse returns the record as it is stored, too: nil where there is none.
func readUse(ctx context.Context, st store.Store, clientID string) (value []byte, record useRecord, err error) {
	value, err = st.Get(ctx, usedKey(clientID))
	if errors.Is(err, store.ErrNotFound) {
		return nil, record, nil
	}
	if err == nil {
		err = json.Unmarshal(value, &record)
	}
	return value, record, err
}

// uses are those that the store was not told of yet.
type uses struct {
	mu sync.Mutex
	// pending is by client and secret, so that a use is one entry however often it
	// happens; told is what is being written.
	pending, told useTimes
	oldest        time.Time // of all in them; zero where there is none
	many          chan struct{}
	flushing      sync.Mutex
}

// useTimes has the time of the last use, in milliseconds since 1970.
type useTimes map[useKey]int64

// useKey is a client, and the secret that it has used: none where it used a key.
type useKey struct {
	clientID string
	hash     secretHash
	slow     string
}

func newUses() *uses { return &uses{pending: make(useTimes), many: make(chan struct{}, 1)} }

// note remembers a use. It is left to the next one where there are too many.
func (u *uses) note(clientID string, by hashedSecret, now time.Time) {
	key := useKey{clientID, by.Hash, by.Slow}
	u.mu.Lock()
	defer u.mu.Unlock()
	if _, known := u.pending[key]; !known && len(u.pending) >= maxUses {
		select {
		case u.many <- struct{}{}:
		default:
		}
		return
	}
	if u.oldest.IsZero() {
		u.oldest = now
	}
	u.pending[key] = max(u.pending[key], now.UnixMilli())
}

// addTo adds to a record what the store does not know yet.
func (u *uses) addTo(record *useRecord, c *Credential) {
	u.mu.Lock()
	defer u.mu.Unlock()
	keys := []useKey{{clientID: c.ClientID}}
	for _, h := range c.Hashes {
		keys = append(keys, useKey{c.ClientID, h.Hash, h.Slow})
	}
	for _, times := range []useTimes{u.told, u.pending} {
		for _, key := range keys {
			if at, ok := times[key]; ok {
				record.add(c, key, at)
			}
		}
	}
}

// lag returns for how long the oldest use was not written.
func (u *uses) lag(now time.Time) time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.oldest.IsZero() {
		return 0
	}
	return max(0, now.Sub(u.oldest))
}

// take returns all, which stay known until they are settled, and when the oldest
// was.
func (u *uses) take() (useTimes, time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.told, u.pending = u.pending, make(useTimes)
	return u.told, u.oldest
}

// settle forgets what was taken, but for what is left of it.
func (u *uses) settle(left useTimes, oldest, began time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.told = nil
	for key, at := range left {
		u.pending[key] = max(u.pending[key], at)
	}
	switch {
	case len(left) > 0:
		u.oldest = oldest
	case len(u.pending) > 0:
		u.oldest = began
	default:
		u.oldest = time.Time{}
	}
}

// flushUses durably tells the store of all uses.
func (r *registry) flushUses(ctx context.Context) error {
	r.uses.flushing.Lock()
	defer r.uses.flushing.Unlock()
	began := time.Now()
	left, oldest := r.uses.take()
	byClient := make(map[string]useTimes)
	for key, at := range left {
		if byClient[key.clientID] == nil {
			byClient[key.clientID] = make(useTimes, 1)
		}
		byClient[key.clientID][key] = at
	}
	left, err := r.writeUses(ctx, byClient)
	r.uses.settle(left, oldest, began)
	return err
}

// writeUses returns what it could not write.
func (r *registry) writeUses(ctx context.Context, byClient map[string]useTimes) (left useTimes, err error) {
	for len(byClient) > 0 && err == nil {
		var batch store.Batch
		var taken []string
		for clientID, times := range byClient {
			if err = r.writeUse(ctx, clientID, times, &batch); err != nil {
				break
			}
			if taken = append(taken, clientID); len(taken) == useBatch {
				break
			}
		}
		if err == nil {
			err = r.store.Commit(ctx, batch)
		}
		switch {
		case errors.Is(err, store.ErrConflict): // a credential was changed at the same time
			err = nil
		case err == nil:
			for _, clientID := range taken {
				delete(byClient, clientID)
			}
		}
	}
	left = make(useTimes)
	for _, times := range byClient {
		maps.Copy(left, times)
	}
	return left, err
}

// writeUse adds to the batch that a credential was used, if it is still there when
// that is carried out.
func (r *registry) writeUse(ctx context.Context, clientID string, times useTimes, batch *store.Batch) error {
	credential, err := r.store.Get(ctx, credentialKey(clientID))
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	c, err := decodeCredential(credential)
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
		ctx, cancel := context.Background(), context.CancelFunc(func() {})
		select {
		case <-r.stop:
			open = false
			ctx, cancel = context.WithTimeout(ctx, lastFlush)
		case <-ticker.C:
		case <-many:
		}
		many = r.uses.many
		if err := r.flushUses(ctx); err != nil {
			// The logger of a configuration may be closed: this outlives them.
			caddy.Log().Named("client_credentials").Error("keeping when credentials were last used", zap.Error(err))
			many = nil // not with each use again, as long as the store takes nothing
		}
		cancel()
	}
}
