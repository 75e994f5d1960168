package issuer

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

const (
	sweepInterval = time.Minute
	// sweepBatch keeps what one transaction deletes well below what the store
	// takes in one, and the maintenance of the store in small steps.
	sweepBatch = 1000
)

func (r *registry) sweepUntilClosed() {
	ticker := time.NewTicker(sweepInterval)
	defer ticker.Stop()
	for {
		select {
		case <-r.stop:
			return
		case now := <-ticker.C:
			if !r.isHeld() {
				continue // a command has the store, and the settings are the default ones
			}
			if err := r.sweep(context.Background(), now); err != nil {
				// The logger of a configuration may be closed: this outlives them.
				caddy.Log().Named("client_credentials").Error("removing what has ended long ago", zap.Error(err))
			}
		}
	}
}

// sweep forgets what nothing depends on any more: the revocations of tokens that
// have expired, credentials that have ended long ago, requests that are not
// repeated any more, and used assertions that have expired.
func (r *registry) sweep(ctx context.Context, now time.Time) error {
	r.mu.Lock()
	maps.DeleteFunc(r.used, func(_ string, until time.Time) bool { return now.After(until) })
	r.mu.Unlock()
	r.nodes.forget(now)
	for _, find := range []func(context.Context, time.Time) (store.Batch, error){r.expiredRevocations, r.endedCredentials, r.oldIdempotency, r.expiredAssertions} {
		if err := r.sweepAll(ctx, now, find); err != nil {
			return err
		}
	}
	return nil
}

// sweepAll carries out, step by step, what find returns, until that is nothing.
func (r *registry) sweepAll(ctx context.Context, now time.Time, find func(context.Context, time.Time) (store.Batch, error)) error {
	for {
		select {
		case <-r.stop:
			return nil
		default:
		}
		batch, err := find(ctx, now)
		if err != nil || len(batch.Deletes) == 0 {
			return err
		}
		batch.Urgent = true // it makes room
		if err := r.store.Commit(ctx, batch); err != nil && !errors.Is(err, store.ErrConflict) {
			return err
		}
	}
}

// errEnough ends a scan.
var errEnough = errors.New("enough")

// dueBefore returns the keys of an index by time that sort before end: all, or
// the first ones.
func (r *registry) dueBefore(ctx context.Context, prefix, end string, most int) (keys []string, err error) {
	err = r.store.Scan(ctx, prefix, func(key string, _ []byte) error {
		if key >= end || len(keys) >= most {
			return errEnough
		}
		keys = append(keys, key)
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return keys, err
}

// expiredRevocations returns the batch that removes what the store keeps of
// revoked tokens that have expired: of all, or of more than a few.
func (r *registry) expiredRevocations(ctx context.Context, now time.Time) (batch store.Batch, err error) {
	end := revokedUntilKey("", now)
	due, err := r.dueBefore(ctx, revokedUntilPrefix, end, sweepBatch/2)
	for _, key := range due {
		batch.Deletes = append(batch.Deletes, key, revokedTokenPrefix+key[len(end):])
	}
	return batch, err
}
