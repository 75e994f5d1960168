package store

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Operations has how long what is done with stores takes.
var Operations = prometheus.NewHistogramVec(prometheus.HistogramOpts{
	Namespace: "caddy", Subsystem: "client_credentials", Name: "store_operation_duration_seconds",
	Help:    "How long reading a record, going through many, and writing took: ok, not found, conflict, full, or failed.",
	Buckets: []float64{1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1},
}, []string{"operation", "result"})

// Measured returns a store that is another one, and measures what is done with it.
func Measured(s Store) Store {
	return measured{s, newTimer("get"), newTimer("scan"), newTimer("commit")}
}

type measured struct {
	Store
	get, scan, commit timer
}

func (m measured) Get(ctx context.Context, key string) (value []byte, err error) {
	begun := time.Now()
	value, err = m.Store.Get(ctx, key)
	m.get.observe(begun, err)
	return value, err
}

func (m measured) Scan(ctx context.Context, prefix string, fn func(key string, value []byte) error) error {
	return m.ScanFrom(ctx, prefix, prefix, fn)
}

func (m measured) ScanFrom(ctx context.Context, prefix, from string, fn func(key string, value []byte) error) error {
	begun := time.Now()
	var ended error // by fn, which is no failure
	err := m.Store.ScanFrom(ctx, prefix, from, func(key string, value []byte) error {
		ended = fn(key, value)
		return ended
	})
	if ended != nil {
		m.scan.observe(begun, nil)
	} else {
		m.scan.observe(begun, err)
	}
	return err
}

func (m measured) Commit(ctx context.Context, batch Batch) error {
	begun := time.Now()
	err := m.Store.Commit(ctx, batch)
	m.commit.observe(begun, err)
	return err
}

// timer has an observer for each result of an operation.
type timer struct{ ok, notFound, conflict, full, failed prometheus.Observer }

func newTimer(operation string) timer {
	of := func(result string) prometheus.Observer { return Operations.WithLabelValues(operation, result) }
	return timer{of("ok"), of("not found"), of("conflict"), of("full"), of("failed")}
}

func (t *timer) observe(begun time.Time, err error) {
	observer := t.failed
	switch {
	case err == nil:
		observer = t.ok
	case errors.Is(err, ErrNotFound):
		observer = t.notFound
	case errors.Is(err, ErrConflict):
		observer = t.conflict
	case errors.Is(err, ErrFull):
		observer = t.full
	}
	observer.Observe(time.Since(begun).Seconds())
}
