package issuer

import (
	"context"
	"errors"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// DefaultRetention is how long a credential is kept that was revoked, or has
// expired, after its last token has expired, where nothing is configured.
const DefaultRetention = 30 * 24 * time.Hour

// endedCredentials returns the batch that removes credentials of which no token
// can live, and that have been kept for as long as they should: all, or more than
// a few.
func (r *registry) endedCredentials(ctx context.Context, now time.Time) (batch store.Batch, err error) {
	kept := r.longestLifetime() + clockMargin + time.Duration(r.retention.Load())
	end := endedKey(now.Add(-kept), "")
	entries, err := r.dueBefore(ctx, endedPrefix, end, sweepBatch/4)
	if err != nil {
		return batch, err
	}
	for _, entry := range entries {
		if len(batch.Deletes) >= sweepBatch {
			break
		}
		if err := r.removeEnded(ctx, entry, entry[len(end):], &batch); err != nil {
			return batch, err
		}
	}
	return batch, nil
}

// removeEnded adds to the batch what is to be removed for an entry of the index
// of ended credentials. One that earlier releases have revoked before it has
// expired has two.
func (r *registry) removeEnded(ctx context.Context, entry, clientID string, batch *store.Batch) error {
	batch.Deletes = append(batch.Deletes, entry)
	value, err := r.store.Get(ctx, credentialKey(clientID))
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	c, err := decodeCredential(value)
	if err != nil {
		return err
	}
	if entry == endedKey(c.end(), clientID) {
		used, record, err := readUse(ctx, r.store, clientID)
		if err != nil {
			return err
		}
		remove(batch, credentialKey(clientID), value)
		remove(batch, usedKey(clientID), used)
		reindex(batch, append(c.entries(), c.entryByUse(record)), nil)
	}
	return nil
}

// end returns when the credential has stopped to work, or will; zero for never.
func (c *Credential) end() time.Time {
	if !c.Revoked.IsZero() {
		return c.Revoked
	}
	return c.Expires
}
