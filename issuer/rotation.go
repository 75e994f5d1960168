package issuer

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// A key that the server makes passes through three phases, all of them to be
// seen in the key set: published before it signs, so that who keeps the key set
// for a while knows the key when its first token comes; signing; and retired,
// until the last token that it has signed has expired.

// KeySetMaxAge is how long the key set may be kept by those who fetch it.
const KeySetMaxAge = 5 * time.Minute

const (
	// keyLead is how long a key is published before it signs: what is kept longer
	// than it may be is fetched again for a key that is not in it, as a rule.
	keyLead = 2 * KeySetMaxAge
	// keyRound is how often the keys are looked at.
	keyRound = 30 * time.Second
	// keyRetention is how long the record of a retired key is kept, beyond the
	// time that its tokens live: a clock that was wrong for a while takes no key
	// away for ever.
	keyRetention = 30 * 24 * time.Hour
)

// KeyPhase is what a signing key is for.
type KeyPhase string

// The phases of a key. One that was brought by the configuration is never the
// next.
const (
	KeyNext    KeyPhase = "next"
	KeySigning KeyPhase = "signing"
	KeyRetired KeyPhase = "retired"
	KeyRevoked KeyPhase = "revoked"
)

// Key is a signing key as the operator sees it.
type Key struct {
	ID        string    `json:"kid"`
	Algorithm string    `json:"alg"`
	Phase     KeyPhase  `json:"phase"`
	Created   time.Time `json:"created"`
	// Changes is when a next key may sign, and when the last token of a retired
	// one has expired; zero for the others, and for a next key while the
	// configuration brings the one that signs.
	Changes time.Time `json:"changes,omitzero"`
}

var (
	// ErrGivenKey says that the configuration brings the signing key.
	ErrGivenKey = errors.New("the signing key is the configuration's: replace the file that signing_key names, and reload")
	// ErrNoKey says that there is no such key, or that it was revoked already.
	ErrNoKey = errors.New("there is no such key, or it was revoked before")
)

// keyRecord is what the store keeps of a signing key.
type keyRecord struct {
	Public []byte `json:"public"` // PKIX, DER
	// Algorithm is not in records that were made when each kind of key had one.
	Algorithm string    `json:"algorithm"`
	Created   time.Time `json:"created"`
	// Private is the key in PKCS#8, sealed; nil where the operator keeps it, and
	// when the last token that it signed has expired.
	Private *sealed `json:"private,omitempty"`
	// Next says that it is published, and does not sign yet.
	Next bool `json:"next,omitempty"`
	// Signs is since when it signs, or when it last began to; zero before, and in
	// records that were made when a key signed at once.
	Signs time.Time `json:"signs,omitzero"`
	// Retired is when the last token that it signed has expired; zero while it
	// signs, and before.
	Retired time.Time `json:"retired,omitzero"`
	// Revoked is when all of its tokens were refused; zero for a good key.
	Revoked time.Time `json:"revoked,omitzero"`
}

// keyRecords are those of the store, by the keys' ids.
type keyRecords map[string]keyRecord

const (
	keyPrefix = "key/" // key/<kid>
	// keyRevisionKey is the record that every change of the keys changes, so that
	// two nodes can't make different keys at the same time.
	keyRevisionKey = "key_revision"
	// keyRevision is its place among what the store has of the keys: no key's id.
	keyRevision = ""
)

// moment is a time by the clock, which may jump, and the time that the store has
// been open, which can't.
type moment struct {
	wall    time.Time
	running time.Duration
}

func (r *registry) now() moment { return moment{time.Now(), time.Since(r.started)} }

// publishedFor returns how long this process has published the key, for all that
// it knows. After a restart, that begins anew.
func (r *registry) publishedFor(id string, now moment) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	since, known := r.published[id]
	if !known {
		since = now.running
		r.published[id] = since
	}
	return now.running - since
}

// unpublish has that time begin anew for all keys.
func (r *registry) unpublish() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.published)
}

// Keys returns the signing keys: the one that signs first, and the others by
// their age.
func (i *Issuer) Keys(ctx context.Context) ([]Key, error) {
	records, _, err := readKeyRecords(ctx, i.store)
	if err != nil {
		return nil, err
	}
	signing := i.keys().signing.id
	keys := make([]Key, 0, len(records))
	for id, record := range records {
		key := record.describe(id, signing)
		if key.Phase == KeyNext && i.keyPolicy.given != nil {
			key.Changes = time.Time{} // it waits for the configuration to bring none
		}
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b Key) int {
		switch {
		case a.Phase == KeySigning:
			return -1
		case b.Phase == KeySigning:
			return 1
		}
		return b.Created.Compare(a.Created)
	})
	return keys, nil
}

func (r keyRecord) describe(id, signing string) Key {
	key := Key{ID: id, Algorithm: r.Algorithm, Created: r.Created}
	switch {
	case !r.Revoked.IsZero():
		key.Phase = KeyRevoked
	case id == signing:
		key.Phase = KeySigning
	case r.Next:
		key.Phase, key.Changes = KeyNext, r.Created.Add(keyLead)
	default:
		key.Phase, key.Changes = KeyRetired, r.Retired
	}
	return key
}

// RotateKey publishes a key that will sign instead of the present one, and
// returns it, and whether it was made for that: one that was published before
// will do. It returns ErrGivenKey where the server makes no keys.
func (i *Issuer) RotateKey(ctx context.Context) (key Key, made bool, err error) {
	defer i.lockKeys()()
	if i.keyPolicy.given != nil {
		return Key{}, false, ErrGivenKey
	}
	id, record, made, err := i.publishNext(context.WithoutCancel(ctx))
	for errors.Is(err, store.ErrConflict) { // another node has changed the keys
		id, record, made, err = i.publishNext(context.WithoutCancel(ctx))
	}
	if err != nil {
		return Key{}, false, err
	}
	if err := i.settleKeys(ctx, i.registry.now()); err != nil {
		keyLog().Error("settling the keys after one was made: it is not published until this succeeds", zap.Error(err))
	}
	return record.describe(id, ""), made, nil
}

// publishNext returns the key that is to sign next, and whether it was made for
// that.
func (i *Issuer) publishNext(ctx context.Context) (id string, record keyRecord, made bool, err error) {
	records, before, err := readKeyRecords(ctx, i.store)
	if err != nil {
		return "", record, false, err
	}
	if id = records.next(i.keyPolicy); id != "" {
		return id, records[id], false, nil
	}
	if id, err = records.makeKey(i.keyPolicy, time.Now(), true); err != nil {
		return "", record, false, err
	}
	if err := records.commit(ctx, i.store, before); err != nil {
		return "", record, false, fmt.Errorf("keeping a new signing key: %w", err)
	}
	return id, records[id], true, nil
}

// RevokeKey durably has all tokens refused that the key has signed. Where it is
// the one that signs, another takes its place at once. It returns ErrNoKey where
// there is no such key, and ErrGivenKey where the configuration brings it.
func (i *Issuer) RevokeKey(ctx context.Context, id string) error {
	ctx = context.WithoutCancel(ctx) // once begun, it is not given up because the caller went away
	err := i.revokeKey(ctx, id)
	if err == nil || errors.Is(err, ErrNoKey) { // which may have been revoked just before
		err = cmp.Or(i.registry.await(ctx), err) // without the lock: nodes that revoke keys at the same time wait for each other
	}
	return err
}

func (i *Issuer) revokeKey(ctx context.Context, id string) error {
	defer i.lockKeys()()
	if given := i.keyPolicy.given; given != nil && given.id == id {
		return ErrGivenKey
	}
	for {
		records, before, err := readKeyRecords(ctx, i.store)
		if err != nil {
			return err
		}
		record, known := records[id]
		switch {
		case !known:
			return ErrNoKey
		case !record.Revoked.IsZero():
			i.registry.revokeKey(id) // the disk may have taken it, and failed after that
			return ErrNoKey
		}
		record.Revoked = time.Now().UTC()
		records[id] = record
		err = records.commit(ctx, i.store, before)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return fmt.Errorf("revoking a signing key: %w", err)
		}
		i.registry.revokeKey(id)
		if err := i.settleKeys(ctx, i.registry.now()); err != nil {
			keyLog().Error("settling the keys after one was revoked: if it is the one that signs, no token is issued until this succeeds", zap.Error(err))
		}
		return nil
	}
}

// keepKeys settles the keys again and again, until the context ends.
func (i *Issuer) keepKeys(ctx context.Context) {
	ticker := time.NewTicker(keyRound)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			unlock := i.lockKeys()
			err := i.settleKeys(ctx, i.registry.now())
			unlock()
			if err != nil && ctx.Err() == nil {
				keyLog().Error("looking at the signing keys: they stay as they are", zap.Error(err))
			}
		}
	}
}

// lockKeys keeps all configurations of the store from changing its keys. Another
// one may have replaced the master key.
func (i *Issuer) lockKeys() (unlock func()) {
	i.registry.settling.Lock()
	i.keyPolicy.master = i.registry.master
	return i.registry.settling.Unlock
}

// settleKeys sees to what others have done with the keys, and time. The keys are
// locked.
func (i *Issuer) settleKeys(ctx context.Context, now moment) error {
	ring, err := openKeyring(ctx, i.registry, i.keyPolicy, i.registry.longestLifetime()+clockMargin, now)
	if err != nil {
		return err
	}
	before := i.ring.Swap(ring)
	for id := range before.verify {
		if _, stays := ring.verify[id]; !stays {
			keyLog().Info("signing key counts no more", zap.String("kid", id))
		}
	}
	return nil
}

// keyLog is asked for at each use: what it tells outlives a configuration.
func keyLog() *zap.Logger { return caddy.Log().Named("client_credentials.keys") }

// settle decides what each key is for now, makes the keys that are missing, and
// returns which one signs. publishedFor tells how long a key has been published.
func (k keyRecords) settle(p keyPolicy, mark time.Duration, now moment, publishedFor func(string, moment) time.Duration) (signing string, err error) {
	if p.given != nil {
		signing, err = k.give(*p.given, now.wall)
	} else {
		signing, err = k.choose(p, now, publishedFor)
	}
	if err != nil {
		return "", err
	}
	for id, record := range k {
		switch {
		case id == signing:
			if record.Signs.IsZero() || record.Next || !record.Retired.IsZero() || record.Signs.After(now.wall) {
				record.Signs = now.wall.UTC()
			}
			record.Next, record.Retired = false, time.Time{}
		case record.Next:
		case record.Retired.IsZero() || record.Retired.After(now.wall.Add(mark)): // the clock was ahead
			record.Retired = now.wall.Add(mark).UTC()
		case record.Revoked.IsZero() && now.wall.After(record.Retired):
			record.Private = nil // it signs nothing any more, and could only be stolen
		}
		k[id] = record
	}
	maps.DeleteFunc(k, func(_ string, r keyRecord) bool {
		return r.Revoked.IsZero() && (r.strayed(p) || !r.Retired.IsZero() && now.wall.After(r.Retired.Add(keyRetention)))
	})
	return signing, nil
}

// strayed reports whether the key was published for a configuration that does not
// run, or does so no more.
func (r keyRecord) strayed(p keyPolicy) bool {
	return r.Next && p.given == nil && r.Algorithm != p.algorithm
}

// choose finds the key that signs among those that the server has made.
func (k keyRecords) choose(p keyPolicy, now moment, publishedFor func(string, moment) time.Duration) (string, error) {
	signing := k.newest(func(r keyRecord) bool { return !r.Next && r.Retired.IsZero() })
	next := k.next(p)
	switch {
	case signing == "":
		if last := k.interrupted(now.wall); last != "" {
			return last, nil
		}
		if next != "" { // the one that signed was revoked
			return next, nil
		}
		return k.makeKey(p, now.wall, false)
	case next != "":
		// By the clock that can't be set, and that begins anew with the process: no
		// clock that jumps shortens or prolongs it, and no restart shortens it.
		if publishedFor(next, now) >= keyLead {
			return next, nil
		}
	case p.due(k[signing], now.wall):
		next, err := k.makeKey(p, now.wall, true)
		if err != nil {
			return "", err
		}
		publishedFor(next, now)
	}
	return signing, nil
}

// next returns the key that is published to follow the one that signs.
func (k keyRecords) next(p keyPolicy) string {
	return k.newest(func(r keyRecord) bool { return r.Next && r.Algorithm == p.algorithm })
}

// interrupted returns the key that has signed until the configuration brought one,
// while its tokens live: no key signs again that counts no more, or that was
// replaced by one which was revoked since.
func (k keyRecords) interrupted(now time.Time) string {
	last := k.newest(func(r keyRecord) bool { return !r.Next && r.counts(now) })
	for _, r := range k {
		if r.Private != nil && !r.Revoked.IsZero() && r.Created.After(k[last].Created) {
			return ""
		}
	}
	return last
}

// due reports whether another key shall be published beside the one that signs.
func (p *keyPolicy) due(signing keyRecord, now time.Time) bool {
	return signing.Algorithm != p.algorithm || p.rotate > 0 && now.After(signing.Signs.Add(p.rotate-keyLead))
}

// newest returns the youngest of the keys that the server has made, that were not
// revoked, and that fit; empty where there is none.
func (k keyRecords) newest(fits func(keyRecord) bool) (id string) {
	for one, r := range k {
		if r.Private != nil && r.Revoked.IsZero() && fits(r) && (id == "" || r.Created.After(k[id].Created)) {
			id = one
		}
	}
	return id
}

// give adds the key that the configuration brings.
func (k keyRecords) give(key signingKey, now time.Time) (string, error) {
	record, known := k[key.id]
	switch {
	case !known:
		return key.id, k.add(key, keyRecord{Created: now.UTC()})
	case !record.Revoked.IsZero():
		return "", errors.New("signing_key is a key that was revoked: replace the file by one with another key")
	}
	return key.id, nil
}

// makeKey adds a new key.
func (k keyRecords) makeKey(p keyPolicy, now time.Time, next bool) (id string, err error) {
	for other, record := range k { // another node may have replaced the master key
		if record.Private != nil {
			if _, err := p.master.open(keyPrefix+other, *record.Private); err != nil {
				return "", err
			}
		}
	}
	key, err := generateSigningKey(p.algorithm)
	if err != nil {
		return "", err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key.private)
	if err != nil {
		return "", err
	}
	box := p.master.seal(keyPrefix+key.id, private)
	return key.id, k.add(key, keyRecord{Created: now.UTC(), Private: &box, Next: next})
}

func (k keyRecords) add(key signingKey, record keyRecord) (err error) {
	record.Algorithm = key.method.Alg()
	record.Public, err = x509.MarshalPKIXPublicKey(key.public)
	k[key.id] = record
	return err
}

// counts reports whether tokens of the key may be good.
func (r keyRecord) counts(now time.Time) bool {
	return r.Revoked.IsZero() && (r.Retired.IsZero() || now.Before(r.Retired))
}

// readKeyRecords returns the records, and what the store has of them.
func readKeyRecords(ctx context.Context, st store.Store) (records keyRecords, raw map[string][]byte, err error) {
	records, raw = make(keyRecords), make(map[string][]byte)
	revision, err := st.Get(ctx, keyRevisionKey)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, nil, err
	}
	raw[keyRevision] = revision
	err = st.Scan(ctx, keyPrefix, func(key string, value []byte) error {
		var record keyRecord
		if err := json.Unmarshal(value, &record); err != nil {
			return fmt.Errorf("the record of a signing key can't be read: %w", err)
		}
		id := strings.TrimPrefix(key, keyPrefix)
		if record.Algorithm == "" {
			if record.Algorithm, err = usualAlgorithm(record.Public); err != nil {
				return fmt.Errorf("signing key %s %w", id, err)
			}
		}
		records[id], raw[id] = record, value
		return nil
	})
	return records, raw, err
}

// usualAlgorithm returns the one that goes with a kind of key.
func usualAlgorithm(public []byte) (string, error) {
	parsed, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		return "", fmt.Errorf("can't be read: %w", err)
	}
	key, err := newVerifyKey(parsed, "")
	if err != nil {
		return "", err
	}
	return key.method.Alg(), nil
}

// commit writes what differs from what the store had. It returns
// store.ErrConflict where the store has something else by now.
func (k keyRecords) commit(ctx context.Context, st store.Store, before map[string][]byte) error {
	batch := store.Batch{Urgent: true} // keys are few, and one may be revoked
	for id, record := range k {
		if err := replace(&batch, keyPrefix+id, before[id], record); err != nil {
			return err
		}
	}
	for id, value := range before {
		if _, stays := k[id]; !stays && id != keyRevision {
			remove(&batch, keyPrefix+id, value)
		}
	}
	if len(batch.Conditions) == 0 {
		return nil
	}
	if err := raiseRevision(&batch, before); err != nil {
		return err
	}
	return st.Commit(ctx, batch)
}

// raiseRevision has the batch fail where the keys are not any more as they were
// read.
func raiseRevision(batch *store.Batch, before map[string][]byte) error {
	var revision uint64
	if before[keyRevision] != nil {
		if err := json.Unmarshal(before[keyRevision], &revision); err != nil {
			return fmt.Errorf("%s can't be read: %w", keyRevisionKey, err)
		}
	}
	return replace(batch, keyRevisionKey, before[keyRevision], revision+1)
}
