package issuer

import (
	"context"
	"crypto"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"maps"
	"sync"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// keyring holds the keys of one configuration as they are for a while: the one
// that signs, all whose tokens may still live, and the peppers of the secrets. It
// is never changed.
type keyring struct {
	signing signingKey
	signs   time.Time            // since when that one does
	verify  map[string]verifyKey // by id
	peppers map[int]*pepper
	pepper  int // the number of the newest one
}

// keyPolicy is what a configuration says of the keys.
type keyPolicy struct {
	master    masterKey
	given     *signingKey   // the operator's own; nil: those that the server makes
	algorithm string        // of those
	rotate    time.Duration // how long one of them signs; 0: until it is told otherwise
}

const (
	pepperPrefix = "pepper/" // pepper/<number>
	pepperSize   = 32
)

// openKeyring reads the keys of the store, settles what each is for now, and
// makes those that are missing. Keys that sign no more stay valid until mark, the
// longest time that a token lives, has passed.
func openKeyring(ctx context.Context, reg *registry, policy keyPolicy, mark time.Duration, now moment) (*keyring, error) {
	ring := &keyring{peppers: make(map[int]*pepper)}
	err := ring.openPeppers(ctx, reg.store, policy.master)
	if errors.Is(err, store.ErrConflict) { // another node has made the first one
		err = ring.openPeppers(ctx, reg.store, policy.master)
	}
	if err != nil {
		return nil, err
	}
	if policy.given != nil {
		reg.unpublish()
	}
	for {
		records, before, err := readKeyRecords(ctx, reg.store)
		if err != nil {
			return nil, err
		}
		reg.revokeKeys(records)
		earlier := maps.Clone(records)
		signing, err := records.settle(policy, mark, now, reg.publishedFor)
		if err != nil {
			return nil, err
		}
		if err := ring.open(records, signing, policy, now); err != nil { // then the keys stay as they are
			return nil, err
		}
		err = records.commit(ctx, reg.store, before)
		if errors.Is(err, store.ErrConflict) {
			continue // another configuration has settled it
		}
		if err != nil {
			return nil, fmt.Errorf("keeping the signing keys: %w", err)
		}
		reg.recordKeys(ctx, earlier, records, signing, policy)
		return ring, nil
	}
}

// open fills the ring with the keys that count now.
func (r *keyring) open(records keyRecords, signing string, policy keyPolicy, now moment) error {
	r.verify = make(map[string]verifyKey)
	r.signs = records[signing].Signs
	for id, record := range records {
		if !record.counts(now.wall) || record.Next && policy.given != nil { // it would never sign
			continue
		}
		public, err := x509.ParsePKIXPublicKey(record.Public)
		if err != nil {
			return fmt.Errorf("signing key %s can't be read: %w", id, err)
		}
		key, err := newVerifyKey(public, record.Algorithm)
		if err != nil {
			return fmt.Errorf("signing key %s %w", id, err)
		}
		if key.id != id {
			return fmt.Errorf("signing key %s is not the one of that name", id)
		}
		r.verify[id] = key
	}
	if policy.given != nil {
		r.signing = *policy.given
		return nil
	}
	private, err := policy.master.open(keyPrefix+signing, *records[signing].Private)
	if err != nil {
		return err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(private)
	if err != nil {
		return fmt.Errorf("signing key %s can't be read: %w", signing, err)
	}
	r.signing, err = newSigningKey(parsed.(crypto.Signer), records[signing].Algorithm)
	return err
}

func (r *keyring) openPeppers(ctx context.Context, st store.Store, master masterKey) error {
	err := st.Scan(ctx, pepperPrefix, func(key string, value []byte) error {
		var number int
		if _, err := fmt.Sscanf(key, pepperPrefix+"%d", &number); err != nil {
			return fmt.Errorf("%s is no pepper: %w", key, err)
		}
		var box sealed
		if err := json.Unmarshal(value, &box); err != nil {
			return fmt.Errorf("%s can't be read: %w", key, err)
		}
		opened, err := master.open(key, box)
		if err != nil {
			return err
		}
		r.peppers[number] = newPepper(opened)
		r.pepper = max(r.pepper, number)
		return nil
	})
	if err != nil || r.pepper > 0 {
		return err
	}
	const first = 1
	made := randomBytes(pepperSize)
	record, err := pepperRecord(master, first, made)
	if err != nil {
		return err
	}
	err = st.Commit(ctx, store.Batch{Conditions: []store.Condition{{Key: record.Key}}, Puts: []store.Record{record}})
	if err != nil {
		return fmt.Errorf("keeping a new pepper: %w", err)
	}
	r.pepper, r.peppers[first] = first, newPepper(made)
	return nil
}

func pepperRecord(master masterKey, number int, pepper []byte) (store.Record, error) {
	key := fmt.Sprintf("%s%d", pepperPrefix, number)
	value, err := json.Marshal(master.seal(key, pepper))
	return store.Record{Key: key, Value: value}, err
}

// hash returns what is kept of a secret. The client id is part of it, so that
// a hash is worth nothing in another credential's record.
func (r *keyring) hash(clientID, secret string) hashedSecret {
	h := hashedSecret{Pepper: r.pepper, Hash: secretHash(r.peppers[r.pepper].mac(clientID, secret))}
	h.Hint = hintOf(secret)
	return h
}

// matches reports whether the secret is the one that was hashed, in a time that
// does not tell how far it fits.
func (r *keyring) matches(h hashedSecret, clientID, secret string) bool {
	p, known := r.peppers[h.Pepper]
	return known && subtle.ConstantTimeCompare(h.Hash[:], p.mac(clientID, secret)) == 1
}

// pepper is the key of the HMACs that are kept of secrets. It keeps what an
// HMAC makes of its key: half of its work for a text as short as these.
type pepper struct {
	macs sync.Pool // of hash.Hash, each as if nothing was written to it
}

func newPepper(key []byte) *pepper {
	return &pepper{macs: sync.Pool{New: func() any { return hmac.New(sha256.New, key) }}}
}

func (p *pepper) mac(clientID, secret string) []byte {
	text := make([]byte, 0, max(len(clientID)+1+len(secret), sha256.Size)) // room for the HMAC, too
	text = append(text, clientID...)
	text = append(text, 0)
	text = append(text, secret...)
	mac := p.macs.Get().(hash.Hash)
	mac.Write(text)
	clear(text) // what is kept of the secret must not hold it in its spare room
	sum := mac.Sum(text[:0])
	mac.Reset() // the secret does not stay in the pool
	p.macs.Put(mac)
	return sum
}
