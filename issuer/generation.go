package issuer

import (
	"context"
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
		taken, changed, err := i.changeSome(ctx, ids, func(c *Credential, batch *store.Batch, before []byte) error {
			c.endTokens(time.Now())
			return replace(batch, credentialKey(c.ClientID), before, c)
		})
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

// changeSome takes as many of the credentials as fit into one batch, and changes
// those that are still there: by what change adds to the batch, if anything. It
// returns store.ErrConflict, and has done nothing, where one of them was changed
// at the same time.
func (i *Issuer) changeSome(ctx context.Context, ids []string,
	change func(c *Credential, batch *store.Batch, before []byte) error,
) (taken, changed int, err error) {
	var batch store.Batch
	var credentials []*Credential
	for size := 0; taken < len(ids) && size < generationBatch && len(batch.Deletes) < sweepBatch; taken++ {
		before, err := i.store.Get(ctx, credentialKey(ids[taken]))
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
		puts := len(batch.Puts)
		if err := change(c, &batch, before); err != nil {
			return 0, 0, err
		}
		if len(batch.Puts) > puts {
			credentials = append(credentials, c)
			size += len(batch.Puts[puts].Value)
		}
	}
	// Once begun, it is not given up because the caller went away.
	if err := i.registry.commit(context.WithoutCancel(ctx), batch, credentials...); err != nil {
		return 0, 0, err
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
