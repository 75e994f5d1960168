package store_test

import (
	"context"
	"errors"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/clientcredentials/caddy-client-credentials/store"
	"github.com/clientcredentials/caddy-client-credentials/store/badger"
)

// scans returns how many of them were measured.
func scans(t *testing.T) (n uint64) {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(store.Operations)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, metric := range families[0].Metric {
		for _, label := range metric.Label {
			if label.GetName() == "operation" && label.GetValue() == "scan" {
				n += metric.Histogram.GetSampleCount()
			}
		}
	}
	return n
}

func TestEachWayThroughManyRecordsIsMeasured(t *testing.T) {
	engine := &badger.Badger{Path: t.TempDir()}
	if err := engine.Provision(caddy.Context{}); err != nil {
		t.Fatal(err)
	}
	opened, err := engine.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	st := store.Measured(opened)
	defer func() { _ = st.Close() }()
	if err := st.Commit(t.Context(), store.Batch{Puts: []store.Record{{Key: "a/1"}, {Key: "a/2"}}}); err != nil {
		t.Fatal(err)
	}
	enough := errors.New("enough")
	for what, scan := range map[string]func(context.Context, func(string, []byte) error) error{
		"all": func(ctx context.Context, fn func(string, []byte) error) error { return st.Scan(ctx, "a/", fn) },
		"from": func(ctx context.Context, fn func(string, []byte) error) error {
			return st.ScanFrom(ctx, "a/", "a/2", fn)
		},
	} {
		before := scans(t)
		if err := scan(t.Context(), func(string, []byte) error { return enough }); !errors.Is(err, enough) {
			t.Fatal(err)
		}
		if n := scans(t) - before; n != 1 {
			t.Errorf("%s: it is measured %d times", what, n)
		}
	}
}
