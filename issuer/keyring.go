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
	"sync"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// keyring holds the keys of one configuration: the one that signs, all whose
// tokens may still live, and the peppers of the secrets. It is never changed.
type keyring struct {
	signing signingKey
	verify  map[string]verifyKey // by id
	peppers map[int]*pepper
	pepper  int // the number of the newest one
}

// keyRecord is what the store keeps of a signing key.
type keyRecord struct {
	Public  []byte    `json:"public"` // PKIX, DER
	Created time.Time `json:"created"`
	// Private is the key in PKCS#8, sealed; nil where the operator keeps it.
	Private *sealed `json:"private,omitempty"`
	// Retired is when the last token that it signed has expired; zero while it
	// signs.
	Retired time.Time `json:"retired,omitzero"`
}

const (
	keyPrefix    = "key/"    // key/<kid>
	pepperPrefix = "pepper/" // pepper/<number>
	firstPepper  = pepperPrefix + "1"
	pepperSize   = 32
)

// sealedInUse reports whether the store holds anything that only its master
// key can open.
func sealedInUse(ctx context.Context, st store.Store) (bool, error) {
	_, err := st.Get(ctx, firstPepper)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// openKeyring reads the keys of the store and makes those that are missing.
// The key that signs is the operator's where it is given, else the newest that
// the store itself holds. Others stay valid until mark, the longest time that a
// token lives, has passed since they were replaced.
func openKeyring(ctx context.Context, st store.Store, master masterKey, given *signingKey, mark time.Duration, now time.Time) (*keyring, error) {
	ring := &keyring{verify: make(map[string]verifyKey), peppers: make(map[int]*pepper)}
	if err := ring.openPeppers(ctx, st, master); err != nil {
		return nil, err
	}
	records := make(map[string]keyRecord)
	raw := make(map[string][]byte)
	err := st.Scan(ctx, keyPrefix, func(key string, value []byte) error {
		var record keyRecord
		if err := json.Unmarshal(value, &record); err != nil {
			return fmt.Errorf("the record of a signing key can't be read: %w", err)
		}
		id := key[len(keyPrefix):]
		records[id], raw[id] = record, value
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := ring.chooseSigning(records, master, given, now); err != nil {
		return nil, err
	}

	var batch store.Batch
	for id, record := range records {
		before := record.Retired
		switch {
		case id == ring.signing.id:
			record.Retired = time.Time{}
		case record.Retired.IsZero():
			record.Retired = now.Add(mark)
		}
		if id == ring.signing.id || now.Before(record.Retired) {
			public, err := x509.ParsePKIXPublicKey(record.Public)
			if err != nil {
				return nil, fmt.Errorf("signing key %s can't be read: %w", id, err)
			}
			key, err := newVerifyKey(public.(crypto.PublicKey))
			if err != nil {
				return nil, fmt.Errorf("signing key %s %w", id, err)
			}
			if key.id != id {
				return nil, fmt.Errorf("signing key %s is not the one of that name", id)
			}
			ring.verify[id] = key
		}
		if raw[id] == nil || !record.Retired.Equal(before) {
			value, err := json.Marshal(record)
			if err != nil {
				return nil, err
			}
			batch.Conditions = append(batch.Conditions, store.Condition{Key: keyPrefix + id, Value: raw[id]})
			batch.Puts = append(batch.Puts, store.Record{Key: keyPrefix + id, Value: value})
		}
	}
	if len(batch.Puts) > 0 {
		if err := st.Commit(ctx, batch); err != nil {
			return nil, fmt.Errorf("keeping the signing keys: %w", err)
		}
	}
	return ring, nil
}

// chooseSigning settles which key signs, and adds it to records where it is
// new.
func (r *keyring) chooseSigning(records map[string]keyRecord, master masterKey, given *signingKey, now time.Time) error {
	if given != nil {
		r.signing = *given
		return addRecord(records, *given, nil, now)
	}
	newest := ""
	for id, record := range records {
		if record.Private != nil && (newest == "" || record.Created.After(records[newest].Created)) {
			newest = id
		}
	}
	if newest == "" {
		key, err := generateSigningKey()
		if err != nil {
			return err
		}
		der, err := x509.MarshalPKCS8PrivateKey(key.private)
		if err != nil {
			return err
		}
		box := master.seal(keyPrefix+key.id, der)
		r.signing = key
		return addRecord(records, key, &box, now)
	}
	der, err := master.open(keyPrefix+newest, *records[newest].Private)
	if err != nil {
		return err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return fmt.Errorf("signing key %s can't be read: %w", newest, err)
	}
	r.signing, err = newSigningKey(parsed.(crypto.Signer))
	return err
}

func addRecord(records map[string]keyRecord, key signingKey, private *sealed, now time.Time) error {
	if _, known := records[key.id]; known {
		return nil
	}
	public, err := x509.MarshalPKIXPublicKey(key.public)
	if err != nil {
		return err
	}
	records[key.id] = keyRecord{Public: public, Created: now.UTC(), Private: private}
	return nil
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
	made := randomBytes(pepperSize)
	value, err := json.Marshal(master.seal(firstPepper, made))
	if err != nil {
		return err
	}
	err = st.Commit(ctx, store.Batch{
		Conditions: []store.Condition{{Key: firstPepper}},
		Puts:       []store.Record{{Key: firstPepper, Value: value}},
	})
	if err != nil {
		return fmt.Errorf("keeping a new pepper: %w", err)
	}
	r.peppers[1], r.pepper = newPepper(made), 1
	return nil
}

// hash returns what is kept of a secret. The client id is part of it, so that
// a hash is worth nothing in another credential's record.
func (r *keyring) hash(clientID, secret string) hashedSecret {
	return hashedSecret{Pepper: r.pepper, Hash: secretHash(r.peppers[r.pepper].mac(clientID, secret))}
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
