package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// generationBatch keeps what one transaction writes well below what the store
// takes in one, in bytes.
const generationBatch = 128 << 10

// endAllTokens starts a new generation of the store: it durably ends every
// token of every credential, and returns of how many. What it has ended stays so
// where it fails, and it may be called again.
func (i *Issuer) endAllTokens(ctx context.Context) (int, error) {
	var ids []string
	err := i.store.Scan(ctx, credentialPrefix, func(key string, _ []byte) error {
		ids = append(ids, key[len(credentialPrefix):])
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("ending all tokens: %w", err)
	}
	ended := 0
	for len(ids) > 0 {
		taken, changed, err := i.endTokensOfSome(ctx, ids)
		if errors.Is(err, store.ErrConflict) {
			continue // one of them was changed at the same time
		}
		if err != nil {
			return ended, fmt.Errorf("ending all tokens: %w", err)
		}
		ids, ended = ids[taken:], ended+changed
	}
	return ended, nil
}

// endTokensOfSome takes as many of the credentials as fit into one batch, and
// changes those that are still there.
func (i *Issuer) endTokensOfSome(ctx context.Context, ids []string) (taken, changed int, err error) {
	var batch store.Batch
	var credentials []*Credential
	for size := 0; taken < len(ids) && size < generationBatch; taken++ {
		key := credentialKey(ids[taken])
		before, err := i.store.Get(ctx, key)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return 0, 0, err
		}
		c, err := decodeCredential(before)
		if err != nil {
			return 0, 0, err
		}
		c.endTokens(time.Now())
		after, err := json.Marshal(c)
		if err != nil {
			return 0, 0, err
		}
		batch.Conditions = append(batch.Conditions, store.Condition{Key: key, Value: before})
		batch.Puts = append(batch.Puts, store.Record{Key: key, Value: after})
		credentials = append(credentials, c)
		size += len(after)
	}
	if err := i.store.Commit(ctx, batch); err != nil {
		return 0, 0, err
	}
	for _, c := range credentials {
		i.registry.apply(c)
	}
	return taken, len(credentials), nil
}

// endTokens gives the credential an epoch that no other history of the store has
// reached: a state that a backup was older than, or one that came of an earlier
// restore, may have issued tokens under each epoch after the present one, but
// not a million in a second. A JSON number holds it exactly till the year 2242.
func (c *Credential) endTokens(now time.Time) {
	c.Epoch = max(c.Epoch+1, uint64(now.Unix())<<20) //nolint:gosec // G115: the clock is past 1970
	c.Version++
}
