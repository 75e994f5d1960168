package issuer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

var (
	// ErrMasterKeyNeeded says that the configuration brings the master key, so
	// that its replacement has to be brought too.
	ErrMasterKeyNeeded = &InputError{"the new master key", "is missing: the configuration brings the present one by master_key, so make the new one with: openssl rand -base64 32"}
	// ErrMasterKeyStored says that the server keeps the master key itself.
	ErrMasterKeyStored = &InputError{"the new master key", "is made by the server, which keeps it in Caddy's storage: leave it out"}
	// ErrMasterKeyGood says that no master key is lost.
	ErrMasterKeyGood = errors.New("the master key opens what the store holds, so nothing is lost; to replace it, use rewrap")
)

// Rewrap seals what the store holds with another master key, while the server
// runs: with one that it makes and keeps in Caddy's storage, or, where the
// configuration brings the master key, with the one that is given as text. That
// one has to be in the configuration before it is loaded again. It returns an
// *InputError where the text is missing, wrong, or not needed.
func (a *App) Rewrap(ctx context.Context, text string) error {
	iss, err := a.Open()
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // once begun, it is not given up because the caller went away
	switch {
	case a.MasterKey == "" && text != "":
		return ErrMasterKeyStored
	case a.MasterKey == "":
		return a.rewrapStored(ctx, iss)
	case text == "":
		return ErrMasterKeyNeeded
	}
	to, err := parseMasterKey(text)
	if err != nil {
		return &InputError{"the new master key", err.Error()}
	}
	return iss.reseal(ctx, to)
}

// rewrapStored keeps the new master key beside the old one until the store is
// sealed with it: storedMasterKey finds the one that opens the store, wherever
// this is cut short.
func (a *App) rewrapStored(ctx context.Context, iss *Issuer) error {
	if err := a.storage.Lock(ctx, masterKeyFile); err != nil {
		return fmt.Errorf("locking the master key in Caddy's storage: %w", err)
	}
	defer func() { _ = a.storage.Unlock(ctx, masterKeyFile) }()
	present, err := sealedBy(ctx, iss.store)
	if err != nil {
		return err
	}
	// After one that was cut short, the only copy of the present key may be where
	// the new one goes.
	if _, _, err := findMasterKey(ctx, a.storage, present); err != nil {
		return err
	}
	to, err := makeMasterKey(ctx, a.storage, nextMasterKeyFile)
	if err != nil {
		return err
	}
	if err := iss.reseal(ctx, to); err != nil {
		return err
	}
	return promoteMasterKey(ctx, a.storage)
}

// reseal seals what the store holds with another master key, in one transaction.
func (i *Issuer) reseal(ctx context.Context, to masterKey) error {
	defer i.lockKeys()()
	for {
		batch, err := resealed(ctx, i.store, i.keyPolicy.master, to)
		if err != nil {
			return err
		}
		err = i.store.Commit(ctx, batch)
		if errors.Is(err, store.ErrConflict) {
			continue
		}
		if err != nil {
			return fmt.Errorf("sealing the store with another master key: keep both until the store has opened with one of them: %w", err)
		}
		i.registry.master = to
		return nil
	}
}

// resealed returns the batch that seals everything with another master key.
func resealed(ctx context.Context, st store.Store, from, to masterKey) (batch store.Batch, err error) {
	reseal := func(key string, box *sealed) error {
		text, err := from.open(key, *box)
		if err == nil {
			*box = to.seal(key, text)
		}
		return err
	}
	err = st.Scan(ctx, pepperPrefix, func(key string, value []byte) error {
		var box sealed
		if err := json.Unmarshal(value, &box); err != nil {
			return fmt.Errorf("%s can't be read: %w", key, err)
		}
		if err := reseal(key, &box); err != nil {
			return err
		}
		return replace(&batch, key, value, box)
	})
	if err != nil {
		return batch, err
	}
	records, before, err := readKeyRecords(ctx, st)
	if err == nil {
		err = raiseRevision(&batch, before) // so that no other node makes a key meanwhile
	}
	for id, record := range records {
		if err == nil && record.Private != nil {
			if err = reseal(keyPrefix+id, record.Private); err == nil {
				err = replace(&batch, keyPrefix+id, before[id], record)
			}
		}
	}
	return batch, err
}

// ReplaceLostMasterKey makes the store usable again when the master key is lost
// that it was sealed with: it drops what only that one opens, the peppers and the
// private keys of the server, and begins anew with the master key of the
// configuration, or of Caddy's storage, which is made where it is missing. Tokens
// stay valid until they expire, and clients go on that authenticate by a key of their
// own, or by a secret that is kept by another server's hash. It returns the active
// credentials without keys of which a secret is worth nothing any more, and
// ErrMasterKeyGood where the master key is not lost. No other node may have the store
// open.
func (a *App) ReplaceLostMasterKey(ctx context.Context) ([]*Credential, error) {
	if a.engine.Shared() { // acquire may bring the store into another format, so look before
		if err := a.withStoreAlone(ctx, func(store.Store) error { return nil }); err != nil {
			return nil, err
		}
	}
	shared, err := acquire(ctx, a.engine)
	if err != nil {
		return nil, err
	}
	defer func() { _, _ = stores.Delete(a.engine.Identity()) }()
	lost, err := sealedBy(ctx, shared.Store)
	if err != nil {
		return nil, err
	}
	keys := a.keys
	if keys.master.aead == nil {
		if keys.master, err = a.presentMasterKey(ctx, lost); err != nil {
			return nil, err
		}
	}
	if lost == "" || lost == keys.master.id {
		return nil, ErrMasterKeyGood
	}
	batch, err := withoutSealed(ctx, shared.Store, keys.master)
	if err != nil {
		return nil, err
	}
	if n := shared.registry.nodes; n != nil {
		if err := requireStillAlone(ctx, n.Shared); err != nil {
			return nil, err
		}
	}
	if err := shared.Commit(ctx, batch); err != nil {
		return nil, fmt.Errorf("dropping what the lost master key has sealed: %w", err)
	}
	iss, err := openIssuer(ctx, a.policy, shared.registry, keys, a.fetcher)
	if err != nil {
		return nil, err
	}
	all, err := iss.List(ctx, "")
	return slices.DeleteFunc(all, func(c *Credential) bool { return c.Keys != nil || c.KeysURL != "" || !c.hasPeppered() }), err
}

// hasPeppered reports whether one of the secrets can't be compared without its pepper.
func (c *Credential) hasPeppered() bool {
	return slices.ContainsFunc(c.Hashes, func(h hashedSecret) bool { return h.Slow == "" })
}

// presentMasterKey returns the master key of Caddy's storage, or makes it.
func (a *App) presentMasterKey(ctx context.Context, sealedWith string) (masterKey, error) {
	key, found, err := findMasterKey(ctx, a.storage, sealedWith)
	if err == nil && !found {
		return makeMasterKey(ctx, a.storage, masterKeyFile)
	}
	return key, err
}

// withoutSealed returns the batch that drops what the store holds sealed, and
// begins with a new pepper. It has another number than the lost ones: no secret
// of theirs fits it.
func withoutSealed(ctx context.Context, st store.Store, master masterKey) (batch store.Batch, err error) {
	number := 0
	err = st.Scan(ctx, pepperPrefix, func(key string, value []byte) error {
		var lost int
		if _, err := fmt.Sscanf(key, pepperPrefix+"%d", &lost); err != nil {
			return fmt.Errorf("%s is no pepper: %w", key, err)
		}
		number = max(number, lost)
		remove(&batch, key, value)
		return nil
	})
	if err != nil {
		return batch, err
	}
	pepper, err := pepperRecord(master, number+1, randomBytes(pepperSize))
	if err != nil {
		return batch, err
	}
	batch.Puts = append(batch.Puts, pepper)
	records, before, err := readKeyRecords(ctx, st)
	for _, id := range slices.Sorted(maps.Keys(records)) {
		record := records[id]
		switch {
		case err != nil || record.Private == nil:
		case record.Next: // it has signed nothing
			remove(&batch, keyPrefix+id, before[id])
		default:
			record.Private = nil
			err = replace(&batch, keyPrefix+id, before[id], record)
		}
	}
	return batch, err
}

// replace has the batch put another value where the record is still the one that
// was read; nothing, where it is the same.
func replace(batch *store.Batch, key string, before []byte, after any) error {
	value, err := json.Marshal(after)
	if err != nil || bytes.Equal(value, before) {
		return err
	}
	batch.Conditions = append(batch.Conditions, store.Condition{Key: key, Value: before})
	batch.Puts = append(batch.Puts, store.Record{Key: key, Value: value})
	return nil
}

// remove has the batch delete a record that is still the one that was read.
func remove(batch *store.Batch, key string, before []byte) {
	batch.Conditions = append(batch.Conditions, store.Condition{Key: key, Value: before})
	batch.Deletes = append(batch.Deletes, key)
}
