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
// same one at once share one. A check that nobody waits for any more gives up its
// place in the queue; so it runs by itself, and not with one of the requests.
type flights struct {
	mu     sync.Mutex
	checks map[string]*flight // by the whole token
}

type flight struct {
	landed  chan struct{} // closed when token and err are known
	token   *cachedToken
	err     error
	waiting int // guarded by the flights
	giveUp  context.CancelFunc
}

var errCheckPanicked = errors.New("checking a token panicked")

// check returns what check does, for all who ask for the same token while it
// runs. It returns the error of ctx as soon as that is done.
func (f *flights) check(ctx context.Context, token string, check func(context.Context) (*cachedToken, error)) (*cachedToken, error) {
	one := f.join(ctx, token, check)
	select {
	case <-one.landed:
		return one.token, one.err
	case <-ctx.Done():
		f.leave(token, one)
		return nil, ctx.Err()
	}
}

func (f *flights) join(ctx context.Context, token string, check func(context.Context) (*cachedToken, error)) *flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	one := f.checks[token]
	if one == nil {
		one = &flight{landed: make(chan struct{})}
		// The others must not fail because the first one's client went away.
		ctx, one.giveUp = context.WithCancel(context.WithoutCancel(ctx))
		if f.checks == nil {
			f.checks = make(map[string]*flight)
		}
		f.checks[token] = one
		go f.run(ctx, token, one, check)
	}
	one.waiting++
	return one
}

func (f *flights) leave(token string, one *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if one.waiting--; one.waiting == 0 {
		one.giveUp()
		f.forget(token, one)
	}
}

func (f *flights) run(ctx context.Context, token string, one *flight, check func(context.Context) (*cachedToken, error)) {
	defer func() {
		if p := recover(); p != nil { // in a goroutine of its own it would end the process
			one.err = errCheckPanicked
			caddy.Log().Named("client_credentials").Error("panic while checking a token", zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
		}
		one.giveUp()
		f.mu.Lock()
		f.forget(token, one)
		f.mu.Unlock()
		close(one.landed)
	}()
	one.token, one.err = check(ctx)
}

// forget has the next who brings the token begin anew. The flights are locked.
func (f *flights) forget(token string, one *flight) {
	if f.checks[token] == one {
		delete(f.checks, token)
	}
}
