package issuer

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// RepeatedError says that a request to create a credential was made before, and
// carried out. Its secret can't be read again.
type RepeatedError struct{ ClientID string }

func (e *RepeatedError) Error() string {
	return "the same request has created the credential " + e.ClientID + " before: its secret can't be shown again"
}

// idempotencyRetention is how long it is known that a request was made.
const idempotencyRetention = 24 * time.Hour

const (
	idempotencyPrefix      = "idempotency/"       // idempotency/<hash of creator and key>
	idempotencyUntilPrefix = "idempotency_until/" // idempotency_until/<when to remove it>/<the same>
)

// idempotencyRecord is what a request has made.
type idempotencyRecord struct {
	ClientID string    `json:"client_id"`
	Until    time.Time `json:"until"`
}

func idempotencyUntilKey(until time.Time, hash string) string {
	return fmt.Sprintf("%s%020d/%s", idempotencyUntilPrefix, until.Unix(), hash)
}

// createOnce has the batch that creates a credential fail where the same request
// does the same at the same time. It returns a *RepeatedError where it has
// already.
func (i *Issuer) createOnce(ctx context.Context, d *Draft, clientID string, now time.Time, batch *store.Batch) error {
	sum := sha256.Sum256([]byte(d.CreatedBy + "\x00" + d.IdempotencyKey))
	hash := base64.RawURLEncoding.EncodeToString(sum[:])
	before, err := i.store.Get(ctx, idempotencyPrefix+hash)
	switch {
	case errors.Is(err, store.ErrNotFound):
		before = nil
	case err != nil:
		return err
	default:
		earlier, err := decodeIdempotency(before)
		if err != nil {
			return err
		}
		if now.Before(earlier.Until) {
			return &RepeatedError{earlier.ClientID}
		}
	}
	record := idempotencyRecord{clientID, now.Add(idempotencyRetention).UTC()}
	batch.Puts = append(batch.Puts, store.Record{Key: idempotencyUntilKey(record.Until, hash)})
	return replace(batch, idempotencyPrefix+hash, before, record)
}

func decodeIdempotency(value []byte) (record idempotencyRecord, err error) {
	if err = json.Unmarshal(value, &record); err != nil {
		err = fmt.Errorf("the record of a request can't be read: %w", err)
	}
	return record, err
}

// oldIdempotency returns the batch that forgets requests that were made long
// ago: all, or more than a few.
func (r *registry) oldIdempotency(ctx context.Context, now time.Time) (batch store.Batch, err error) {
	end := idempotencyUntilKey(now, "")
	entries, err := r.dueBefore(ctx, idempotencyUntilPrefix, end, sweepBatch/4)
	if err != nil {
		return batch, err
	}
	for _, entry := range entries {
		batch.Deletes = append(batch.Deletes, entry)
		hash := entry[strings.LastIndexByte(entry, '/')+1:]
		value, err := r.store.Get(ctx, idempotencyPrefix+hash)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return batch, err
		}
		record, err := decodeIdempotency(value)
		if err != nil {
			return batch, err
		}
		if entry == idempotencyUntilKey(record.Until, hash) { // and not of a later request
			remove(&batch, idempotencyPrefix+hash, value)
		}
	}
	return batch, nil
}
