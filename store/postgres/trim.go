package postgres

import (
	"context"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"
)

const (
	// history is how long changes are kept. A node that was cut off for longer
	// reads all that it needs anew.
	history = 10 * time.Minute
	// trimInterval is how often each node looks for older ones.
	trimInterval = time.Minute
)

// trimUntil deletes old changes until ctx is over.
func (f *feed) trimUntil(ctx context.Context) {
	for sleep(ctx, trimInterval/2+rand.N(trimInterval)) == nil { //nolint:gosec // the pause is no secret
		if err := f.trim(ctx, history); err != nil && ctx.Err() == nil {
			logger().Warn("deleting old changes has failed", zap.Error(err))
		}
	}
}

// trim deletes the changes that are older, some at a time, but for the last one.
func (f *feed) trim(ctx context.Context, keep time.Duration) error {
	for deleted := int64(maxChanges); deleted == maxChanges; {
		err := within(ctx, patience, func(ctx context.Context) error {
			tag, err := f.pool.Exec(ctx, `DELETE FROM client_credentials_changes WHERE n IN (
				SELECT n FROM client_credentials_changes
				WHERE at < clock_timestamp() - $1 * interval '1 second' AND n < (SELECT n FROM client_credentials_head)
				ORDER BY n LIMIT $2)`, keep.Seconds(), maxChanges)
			deleted = tag.RowsAffected()
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
