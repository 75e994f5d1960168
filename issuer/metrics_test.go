package issuer

import (
	"context"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// waitingEngine opens a store when it may.
type waitingEngine struct {
	store.Engine
	opens, may chan struct{}
}

func (e *waitingEngine) Open(ctx context.Context) (store.Store, error) {
	close(e.opens)
	<-e.may
	return e.Engine.Open(ctx)
}

func TestMetricsAreToldWhileAStoreOpens(t *testing.T) {
	running, next := newTestApp(t, t.TempDir(), ""), newTestApp(t, t.TempDir(), "")
	if err := running.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = running.Cleanup() }()
	registry := prometheus.NewRegistry()
	if err := running.registerMetrics(registry); err != nil {
		t.Fatal(err)
	}
	engine := &waitingEngine{next.engine, make(chan struct{}), make(chan struct{})}
	next.engine = engine
	opened := make(chan error)
	go func() { opened <- next.Start() }()
	<-engine.opens
	told := make(chan error)
	go func() {
		_, err := registry.Gather()
		told <- err
	}()
	select {
	case err := <-told:
		if err != nil {
			t.Error(err)
		}
		close(engine.may)
	case <-time.After(10 * time.Second):
		t.Error("who asks for metrics waits for a store that opens")
		close(engine.may)
		<-told
	}
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	_ = next.Cleanup()
}
