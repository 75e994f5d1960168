package issuer

import (
	"context"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"go.uber.org/zap"
)

// event is what handlers of Caddy's events app are told.
type event struct {
	name string
	data map[string]any

	// emitted, where it is not nil, makes this no event, but a mark: it is closed
	// when all before it were told.
	emitted chan struct{}
}

// herald tells events one after the other, and apart from what has caused them: a
// handler may take its time.
type herald struct {
	queue chan *event
	begun chan struct{} // closed when a configuration of the store runs
	begin sync.Once
	ended chan struct{} // closed when no more is told

	told  expiriesTold // nil before they were read
	saved time.Time    // when they were written last
}

const (
	// waitingEvents is how many events wait for handlers that take long, before
	// others are lost.
	waitingEvents = 10_000
	// lastEvents is for how long a server that ends waits for handlers, and a store
	// that closes: one that hangs must not keep a reload from coming to its end.
	lastEvents = 5 * time.Second
)

func newHerald() herald {
	return herald{queue: make(chan *event, waitingEvents), begun: make(chan struct{}), ended: make(chan struct{})}
}

// SuspectBruteForce tells that somebody has failed to authenticate too often.
// The client is the one that was tried, or empty.
func (i *Issuer) SuspectBruteForce(address, clientID string) {
	data := map[string]any{"from": address}
	if clientID != "" {
		data["client_id"] = clientID
	}
	i.registry.tell("brute_force_suspected", data)
}

// tell has an event told soon.
func (r *registry) tell(name string, data map[string]any) {
	select {
	case r.herald.queue <- &event{name: name, data: data}:
	default:
		select {
		case <-r.herald.begun:
			caddy.Log().Named("client_credentials").Warn("event lost: its handlers take too long", zap.String("name", name))
		default: // nobody listens: it is a command that works on the store
		}
	}
}

// tellUntilClosed tells what there is to tell, as soon as a configuration runs.
func (r *registry) tellUntilClosed() {
	defer close(r.herald.ended)
	select {
	case <-r.stop:
		return
	case <-r.herald.begun:
	}
	ticker := time.NewTicker(sweepInterval)
	defer ticker.Stop()
	for now := time.Now(); ; {
		if err := r.tellExpiries(context.Background(), now); err != nil {
			caddy.Log().Named("client_credentials").Error("looking for credentials that expire", zap.Error(err))
		}
		if now = r.tellUntil(ticker.C); now.IsZero() {
			return
		}
	}
}

// tellUntil tells events until the ticker ticks, and returns when that was; the
// zero time where the store closes.
func (r *registry) tellUntil(tick <-chan time.Time) time.Time {
	for {
		select {
		case <-r.stop:
			return time.Time{}
		case now := <-tick:
			return now
		case e := <-r.herald.queue:
			if e.emitted != nil {
				close(e.emitted)
			} else {
				r.emit(e.name, e.data)
			}
		}
	}
}

// emit returns when all handlers have been called. It reports whether there is a
// configuration to have some.
func (r *registry) emit(name string, data map[string]any) (spoken bool) {
	a := r.speaker()
	if a == nil {
		return false
	}
	defer func() {
		if err := recover(); err != nil { // under a request, Caddy's server would do this
			caddy.Log().Named("client_credentials").Error("a handler of an event panicked", zap.String("name", name), zap.Any("error", err))
		}
	}()
	ctx := a.ctx
	ctx.Context = context.WithoutCancel(ctx.Context) // the last events are told while it ends
	spoken = true                                    // also where a handler panics
	a.events.Emit(ctx, name, data)
	return spoken
}

// flush waits until what there is to tell was told, but not for long.
func (r *registry) flush() {
	select {
	case <-r.herald.begun:
	default:
		return
	}
	mark := &event{emitted: make(chan struct{})}
	patience := time.After(lastEvents)
	select {
	case r.herald.queue <- mark:
	case <-patience:
		return
	}
	select {
	case <-mark.emitted:
	case <-patience:
	}
}

// provisionEvents has events told once all apps have started: before, nobody
// listens yet.
func (a *App) provisionEvents(ctx caddy.Context) error {
	events, err := ctx.App("events")
	if err != nil {
		return err
	}
	a.ctx, a.events = ctx, events.(*caddyevents.App)
	return a.events.On("started", whenStarted{a.started})
}

func (a *App) started() {
	if iss := a.issuer.Load(); iss != nil {
		h := &iss.registry.herald
		h.begin.Do(func() { close(h.begun) })
	}
}

// whenStarted is an event handler that calls a function. Caddy may log it.
type whenStarted struct{ do func() }

// Handle implements caddyevents.Handler.
func (w whenStarted) Handle(context.Context, caddy.Event) error {
	w.do()
	return nil
}
