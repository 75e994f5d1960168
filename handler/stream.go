package handler

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"reflect"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// stream is a request that a guard has let through, while it is under way. It
// ends with the right to it: at once when its token or credential is revoked,
// and when they expire if the answer has begun; an answer that has not is no
// stream yet.
//
// It costs a request that ends before its token next to nothing: no goroutine,
// no timer, and a context that is made when somebody asks for it and bound to the
// request's when that lasts.
type stream struct {
	writer  streamWriter
	context cutContext
	watch   issuer.Watch
}

// begin starts the watch over a request. It returns an *issuer.Refusal where
// the right to it has ended already, and any other error where it cannot tell.
func (s *stream) begin(a *issuer.Access, w http.ResponseWriter, request cleaned) error {
	r := request.Request
	s.writer.ResponseWriter = w
	s.context.Context, s.context.vars, s.context.replacer = r.Context(), request.vars, request.replacer
	if err := a.Watch(r.Context(), &s.watch, s); err != nil {
		return err
	}
	setContext(&s.context, r)
	return nil
}

// Lasts implements issuer.Watcher.
func (s *stream) Lasts() { s.context.bind() }

// TokenExpired implements issuer.Watcher. An answer that began just before is
// given until the next call to end.
func (s *stream) TokenExpired() {
	if !s.writer.phase.CompareAndSwap(begun, ending) && !s.cut(ending, cutExpired) {
		s.cutAgain()
	}
}

// TokenRevoked implements issuer.Watcher.
func (s *stream) TokenRevoked() {
	if s.writer.phase.CompareAndSwap(waiting, refused) {
		s.context.cancel()
		return
	}
	if !s.cut(begun, cutRevoked) && !s.cut(ending, cutRevoked) {
		s.cutAgain()
	}
}

// closeUnreadable has the server close the connection after a refusal, where no other
// request could be answered on it.
func (s *stream) closeUnreadable(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 1 && s.writer.unreadable.Load() {
		w.Header().Set("Connection", "close")
	}
}

// run lets the next handler answer. What is ended by then is told by the phase; where
// that is refused, a handler that gives up what it believes to have begun is no panic.
func (s *stream) run(r *http.Request, next caddyhttp.Handler) error {
	defer s.end(r)
	defer func() {
		if s.writer.phase.Load() == refused {
			if p := recover(); p != nil && p != http.ErrAbortHandler { //nolint:errorlint // net/http compares it so
				panic(p)
			}
		}
	}()
	return next.ServeHTTP(&s.writer, r)
}

// end gives the request its own context back, for those who answer instead, such as
// handle_errors.
func (s *stream) end(r *http.Request) {
	s.watch.Stop()
	if made := s.context.end(); made && r.Context() == context.Context(&s.context) {
		setContext(s.context.Context, r) //nolint:contextcheck // it is the request's own
	}
}

// setContext gives a request another context in its place: Caddy's placeholders and logs
// hold this very request. To copy what WithContext returns would write the other fields
// anew as well, and a transport that was given up may still be where reverse_proxy's
// body reads the trailers: a data race.
func setContext(ctx context.Context, r *http.Request) {
	if contextField == nil {
		*r = *r.WithContext(ctx)
		return
	}
	*(*context.Context)(unsafe.Add(unsafe.Pointer(r), contextField.Offset)) = ctx //nolint:gosec // G103: it is of this type
}

// contextField is net/http's own, which has no setter; nil where it has another name or
// type.
var contextField = func() *reflect.StructField {
	field, ok := reflect.TypeFor[http.Request]().FieldByName("ctx")
	if !ok || field.Type != reflect.TypeFor[context.Context]() {
		return nil
	}
	return &field
}()

// cut ends an answer that has begun, if it is in that phase. The context comes
// first: where it is canceled, reverse_proxy sees a client that went away, and
// nothing that is the upstream's fault. The deadlines are for what does not
// look at it.
func (s *stream) cut(from, to uint32) bool {
	if !s.writer.phase.CompareAndSwap(from, to) {
		return false
	}
	s.context.cancel()
	s.writer.expire()
	return true
}

// cutAgain reaches what the first time did not: a handler that looks at no
// context and waits for more of the request, and a write that was about to begin
// and has set a deadline of its own since.
func (s *stream) cutAgain() {
	switch phase := s.writer.phase.Load(); {
	case phase == refused:
		s.writer.expireReading()
	case phase > refused:
		s.writer.expire()
	}
}

// The phases of an answer.
const (
	waiting uint32 = iota // nothing is written
	begun
	ending  // it has begun, and the token has expired
	refused // revoked while nothing was written: nothing may be any more
	cutExpired
	cutRevoked
)

// errCut is what a handler gets that writes on after the end.
var errCut = errors.New("the token of this request has expired or was revoked")

// streamWriter sees when an answer begins, and lets nothing pass after its end.
type streamWriter struct {
	caddyhttp.ResponseWriterWrapper
	phase    atomic.Uint32
	hijacked atomic.Bool
	// unreadable says that no more is read for this request. net/http then gives up
	// on the whole connection, if that is one of HTTP/1: it ends the context of
	// every later request on it.
	unreadable atomic.Bool
}

// open reports whether the answer may go on, and notes that it has begun.
func (w *streamWriter) open() bool {
	phase := w.phase.Load()
	if phase == waiting && !w.phase.CompareAndSwap(waiting, begun) {
		phase = w.phase.Load()
	}
	return phase <= ending
}

func (w *streamWriter) WriteHeader(status int) {
	informational := status < 200 && status != http.StatusSwitchingProtocols
	if informational && w.phase.Load() == waiting || w.open() {
		w.ResponseWriter.WriteHeader(status)
	}
}

func (w *streamWriter) Write(p []byte) (int, error) {
	if !w.open() {
		return 0, errCut
	}
	return w.ResponseWriter.Write(p)
}

// ReadFrom implements io.ReaderFrom.
func (w *streamWriter) ReadFrom(r io.Reader) (int64, error) {
	if !w.open() {
		return 0, errCut
	}
	return w.ResponseWriterWrapper.ReadFrom(r)
}

// FlushError flushes; http.ResponseController calls it.
func (w *streamWriter) FlushError() error {
	if !w.open() {
		return errCut
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// Hijack hands over the connection; http.ResponseController calls it.
func (w *streamWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	if !w.open() {
		return nil, nil, errCut
	}
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.hijacked.Store(true)
	if w.phase.Load() > refused { // net/http has removed the deadlines
		w.expire()
	}
	return conn, rw, nil
}

// expire makes all reading and writing of the client's connection, or of its
// stream of HTTP/2 or 3, fail. A writer that knows no deadlines has nothing that
// would block.
func (w *streamWriter) expire() {
	w.expireReading()
	// Caddy's own writer sets a deadline for each write, and is not made for
	// another goroutine: the server's, below it, is.
	_ = http.NewResponseController(innermost(w.ResponseWriter)).SetWriteDeadline(longAgo)
}

func (w *streamWriter) expireReading() {
	w.unreadable.Store(true)
	_ = http.NewResponseController(w.ResponseWriter).SetReadDeadline(longAgo)
}

var longAgo = time.Unix(1, 0)

func innermost(w http.ResponseWriter) http.ResponseWriter {
	for {
		outer, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return w
		}
		w = outer.Unwrap()
	}
}

// cutContext is the context of a request while the guarded handler answers it, with an
// end of its own. What that takes is made when somebody waits for it.
//
// It does not end with the request's context before it is bound to that, which takes
// as much as all the rest: who waits for it in a request that has not lasted yet is
// told within 200 ms that the client went away, and who asks it, at once.
type cutContext struct {
	context.Context //nolint:containedctx // the request's: this is a context itself

	// What Caddy asks a request's context for most: some ten times where it is
	// proxied, each through all the contexts that have come to be around it.
	vars     map[string]any
	replacer *caddy.Replacer

	made    atomic.Bool // inner and release are there, and are not changed any more
	mu      sync.Mutex
	lasts   bool            // what is made from now on is bound from the start
	inner   context.Context //nolint:containedctx // a part of this one
	release context.CancelCauseFunc
	unbind  func() bool // nil where it need not be
}

// Done implements context.Context.
func (c *cutContext) Done() <-chan struct{} {
	c.make()
	return c.inner.Done()
}

// Err implements context.Context.
func (c *cutContext) Err() error {
	if !c.made.Load() {
		return c.Context.Err()
	}
	if c.Context.Err() != nil {
		c.follow() // it may not be bound yet
	}
	return c.inner.Err()
}

// Value implements context.Context. Once it is made, the inner context answers, but
// for what is Caddy's, so that package context finds it and those made from it are its
// children.
func (c *cutContext) Value(key any) any {
	if caddys, ok := key.(caddy.CtxKey); ok {
		switch {
		case caddys == caddyhttp.VarsCtxKey && c.vars != nil:
			return c.vars
		case caddys == caddy.ReplacerCtxKey && c.replacer != nil:
			return c.replacer
		}
	} else if c.made.Load() {
		return c.inner.Value(key)
	}
	return c.Context.Value(key)
}

func (c *cutContext) make() {
	if c.made.Load() {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.made.Load() {
		return
	}
	if _, ends := c.Deadline(); ends || c.lasts {
		c.inner, c.release = context.WithCancelCause(c.Context)
	} else if c.inner, c.release = context.WithCancelCause((*detachedContext)(c)); c.Context.Err() != nil {
		c.follow()
	}
	c.made.Store(true)
}

// detachedContext is the request's context without its end: context.WithoutCancel, as a
// part of what is there.
type detachedContext cutContext

func (*detachedContext) Done() <-chan struct{} { return nil }

func (*detachedContext) Err() error { return nil }

// bind has the context end with the request's.
func (c *cutContext) bind() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.made.Load() && !c.lasts {
		c.unbind = context.AfterFunc(c.Context, c.follow)
	}
	c.lasts = true
}

// follow ends what was made of the context as the request's has ended.
func (c *cutContext) follow() { c.release(context.Cause(c.Context)) }

// cancel ends the context.
func (c *cutContext) cancel() {
	c.make()
	c.release(nil)
}

// end ends what was made of the context, and reports whether that is anything. What
// is made later, by who still has it, ends with the request's.
func (c *cutContext) end() (made bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lasts = true
	if made = c.made.Load(); made {
		c.release(nil)
	}
	if c.unbind != nil {
		c.unbind()
	}
	return made
}

// Interface guards
var (
	_ issuer.Watcher  = (*stream)(nil)
	_ context.Context = (*cutContext)(nil)
	_ http.Hijacker   = (*streamWriter)(nil)
)
