package postgres

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// Await implements store.Shared. It waits for the nodes that have a row when it
// begins: one that makes its row later knows all before it serves. The comment of
// feed says why that is enough.
func (d *database) Await(ctx context.Context) error {
	if d.settings.current.Load().RevokeWait == RevokeWaitNone {
		return nil
	}
	for {
		done, err := d.awaitOthers(ctx)
		if done || err != nil {
			return err
		}
	}
}

// awaitOthers does that, unless the database turns out to have lost commits.
func (d *database) awaitOthers(ctx context.Context) (done bool, err error) {
	own := d.feed.expected()
	if len(own) > 0 {
		d.feed.comeTo()
	}
	begin, err := d.lookOnceReached(ctx, d.feed.known())
	if err != nil {
		return false, fmt.Errorf("asking for the other nodes: %w", err)
	}
	if !begin.has {
		d.feed.comeTo()
		return false, sleep(ctx, 20*time.Millisecond)
	}
	begun := clock() // after the commit, and after the polls that the rows tell of
	told := begin.urgent
	waiting, silent := maps.Clone(begin.others), make(map[uuid.UUID]node)
	for now, pause := begin, 2*time.Millisecond; now.has; pause = min(2*pause, 20*time.Millisecond) {
		for id, other := range waiting {
			row, exists := now.others[id]
			if !exists || row.applied >= begin.head.n { // one without a row does not serve by what it knew when it had it
				delete(waiting, id)
			} else if clock()-begun > other.lease+clockMargin(other.lease) {
				silent[id] = other
				delete(waiting, id)
			}
		}
		if len(waiting) == 0 && !d.feed.expects(own) {
			d.forget(ctx, silent)
			return true, nil
		}
		if !told && len(waiting) > 0 {
			d.hurry(ctx)
			told = true
		}
		err := sleep(ctx, pause)
		if err == nil {
			now, err = d.lookOnceReached(ctx, begin.head)
		}
		if err != nil {
			return false, fmt.Errorf("waiting for other nodes, %d of which have not said that they know of the change: %w", len(waiting), err)
		}
	}
	return false, nil
}

// OpenElsewhere implements store.Shared.
func (d *database) OpenElsewhere(ctx context.Context) (hosts []string, err error) {
	if err := d.enter(ctx); err != nil {
		return nil, err
	}
	defer d.gate.RUnlock()

	err = d.retry(ctx, func() error {
		return d.connected(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
			// Both times are of the database's clock. The margin is that of clockMargin.
			rows, err := conn.Query(ctx, `SELECT host FROM client_credentials_nodes
				WHERE id <> $1 AND seen + lease_ms * interval '1.01 ms' + interval '100 ms' > clock_timestamp()`, d.feed.node)
			if err != nil {
				return err
			}
			hosts, err = pgx.CollectRows(rows, pgx.RowTo[string])
			return err
		})
	})
	return hosts, err
}

// hurry has the other nodes poll at once.
func (d *database) hurry(ctx context.Context) {
	if !d.features.notify || d.enter(ctx) != nil {
		return
	}
	defer d.gate.RUnlock()

	err := d.connected(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
		_, err := conn.Exec(ctx, notify, hurryUp)
		return err
	})
	if err != nil { // they come to it by their next poll
		logger().Debug("telling the other nodes that they are waited for has failed", zap.Error(err))
	}
}

// clockMargin is what a lease is longer by for the others than for the node that
// has it: clocks may run apart by 1 %, and a request that was let in at the last
// moment is answered a little later.
func clockMargin(lease time.Duration) time.Duration { return lease/100 + 100*time.Millisecond }

// view is what there is in the database at one moment.
type view struct {
	head   position // the last commit
	urgent bool     // as that was
	has    bool     // the commit that was asked for is there
	others map[uuid.UUID]node
}

// node is the row of another node.
type node struct {
	applied, polls int64
	lease          time.Duration
	host           string
}

// lookOnceReached looks until ctx is over.
func (d *database) lookOnceReached(ctx context.Context, commit position) (v view, err error) {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		v, err = d.look(ctx, commit)
		if err == nil || errors.Is(err, store.ErrClosed) {
			return v, err
		}
		if over := sleep(ctx, pause); over != nil {
			return view{}, errors.Join(over, err)
		}
	}
}

// look asks for the last commit, for the rows of the other nodes, and whether a commit
// is there.
func (d *database) look(ctx context.Context, commit position) (v view, err error) {
	if err := d.enter(ctx); err != nil {
		return view{}, err
	}
	defer d.gate.RUnlock()

	err = d.retry(ctx, func() error {
		return d.connected(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
			rows, err := conn.Query(ctx, `SELECT head.n, head.id, coalesce(last.urgent, false), `+hasCommit+`,
					nodes.id, nodes.applied, nodes.polls, nodes.lease_ms, nodes.host
				FROM client_credentials_head head
				LEFT JOIN LATERAL (SELECT urgent FROM client_credentials_changes WHERE n = head.n LIMIT 1) last ON true
				LEFT JOIN client_credentials_nodes nodes ON nodes.id <> $3`, commit.n, commit.id, d.feed.node)
			if err != nil {
				return err
			}
			v, err = readView(rows)
			return err
		})
	})
	return v, err
}

// hasCommit is whether the database has the commit with the number $1 and the id $2, and
// has not trimmed it, as it never does with the last one.
const hasCommit = `EXISTS (SELECT 1 FROM client_credentials_changes WHERE n = $1 AND id = $2)`

func readView(rows pgx.Rows) (view, error) {
	v := view{others: make(map[uuid.UUID]node)}
	var id *uuid.UUID
	var applied, polls, lease *int64
	var host *string
	tag, err := pgx.ForEachRow(rows, []any{&v.head.n, &v.head.id, &v.urgent, &v.has, &id, &applied, &polls, &lease, &host}, func() error {
		if id != nil {
			v.others[*id] = node{*applied, *polls, time.Duration(*lease) * time.Millisecond, *host}
		}
		return nil
	})
	if err == nil && tag.RowsAffected() == 0 {
		err = errHeadMissing
	}
	return v, err
}

// forget deletes the rows of nodes that have not polled since these were read,
// more than a lease ago, so that no later commit waits for them. A failure is of no
// account: the next one finds them.
func (d *database) forget(ctx context.Context, silent map[uuid.UUID]node) {
	if len(silent) == 0 || d.enter(ctx) != nil {
		return
	}
	defer d.gate.RUnlock()

	for id, gone := range silent {
		err := d.connected(ctx, func(ctx context.Context, conn *pgxpool.Conn) error {
			tag, err := conn.Exec(ctx, `DELETE FROM client_credentials_nodes WHERE id = $1 AND polls = $2`, id, gone.polls)
			if err == nil && tag.RowsAffected() == 1 {
				logger().Warn("a node has not been heard of for its lease: changes don't wait for it any more",
					zap.String("host", gone.host), zap.Stringer("node", id), zap.Duration("lease", gone.lease))
			}
			return err
		})
		if err != nil {
			logger().Debug("deleting the row of a silent node has failed", zap.Error(err))
		}
	}
}
