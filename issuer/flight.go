package issuer

import (
	"context"
	"errors"
	"runtime/debug"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
)

// flights are the checks of tokens that are under way: requests that bring the
// same one at once share one, which the first of them carries out for all. A check
// that nobody waits for any more gives up its place in the queue.
//
// It is no goroutine of its own: under a flood, these would keep the scheduler
// from looking at the network, and all other requests would wait for it.
type flights struct {
	mu     sync.Mutex
	checks map[string]*flight // by the whole token
}

type flight struct {
	landed  chan struct{} // closed when access and err are known
	access  Access
	err     error
	waiting int // guarded by the flights
	giveUp  context.CancelFunc
}

var errCheckPanicked = errors.New("checking a token panicked")

// check returns what check does, for all who ask for the same token while it
// runs. It returns the error of ctx as soon as that is done, unless others wait
// for what this request is checking.
func (f *flights) check(ctx context.Context, token string, check func(context.Context) (Access, error)) (Access, error) {
	if err := ctx.Err(); err != nil {
		return Access{}, err
	}
	one, work := f.join(ctx, token)
	if work != nil {
		stop := context.AfterFunc(ctx, func() { f.leave(token, one) })
		defer stop()
		f.run(work, token, one, check)
		return one.access, one.err
	}
	select {
	case <-one.landed:
		return one.access, one.err
	case <-ctx.Done():
		f.leave(token, one)
		return Access{}, ctx.Err()
	}
}

// join returns the check of a token, and for the first who asks for it the context
// to carry it out with: the others must not fail because its client went away.
func (f *flights) join(ctx context.Context, token string) (one *flight, work context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	one = f.checks[token]
	if one == nil {
		one = &flight{landed: make(chan struct{})}
		work, one.giveUp = context.WithCancel(context.WithoutCancel(ctx))
		if f.checks == nil {
			f.checks = make(map[string]*flight)
		}
		f.checks[token] = one
	}
	one.waiting++
	return one, work
}

func (f *flights) leave(token string, one *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if one.waiting--; one.waiting == 0 {
		one.giveUp()
		f.forget(token, one)
	}
}

func (f *flights) run(ctx context.Context, token string, one *flight, check func(context.Context) (Access, error)) {
	defer func() {
		if p := recover(); p != nil { // the others must not wait for ever
			one.err = errCheckPanicked
			caddy.Log().Named("client_credentials").Error("panic while checking a token", zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
		}
		one.giveUp()
		f.mu.Lock()
		f.forget(token, one)
		f.mu.Unlock()
		close(one.landed)
	}()
	one.access, one.err = check(ctx)
}

// forget has the next who brings the token begin anew. The flights are locked.
func (f *flights) forget(token string, one *flight) {
	if f.checks[token] == one {
		delete(f.checks, token)
	}
}
