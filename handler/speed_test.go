package handler_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/clientcredentials/caddy-client-credentials/handler"
)

// inProcess has requests pass a guard without a network: as Caddy's server
// prepares them, through what the directive puts in their way, to a handler that
// does nothing.
type inProcess struct {
	server  *caddyhttp.Server
	guarded caddyhttp.Handler
	token   string
}

var nothing = caddyhttp.HandlerFunc(func(http.ResponseWriter, *http.Request) error { return nil })

func newInProcess(t testing.TB) *inProcess {
	t.Helper()
	s := newServer(t)
	s.Run(t, strings.Replace(s.Expand(site("", "", "client_credentials")), "level DEBUG", "level INFO", 1))
	guard := &handler.BearerAuth{Rules: handler.Rules{Scopes: []string{"items:read"}}}
	if err := guard.Provision(caddy.ActiveContext()); err != nil {
		t.Fatal(err)
	}
	return &inProcess{
		server:  new(caddyhttp.Server),
		guarded: caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error { return guard.ServeHTTP(w, r, nothing) }),
		token:   s.Token(t, s.CreateWith(t, "items:read", "items:write")),
	}
}

// pass sends a request with the header fields of a usual client through h.
func (p *inProcess) pass(t testing.TB, w http.ResponseWriter, h caddyhttp.Handler) {
	r := (&http.Request{
		Method: http.MethodGet, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Host: "localhost",
		URL: parsedURL, RequestURI: "/items/1", RemoteAddr: "127.0.0.1:50000", Body: http.NoBody,
		Header: http.Header{
			"Accept": {"*/*"}, "Accept-Encoding": {"gzip"}, "User-Agent": {"test"}, "Authorization": {"Bearer " + p.token},
		},
	}).WithContext(context.Background())
	r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, p.server)
	if err := h.ServeHTTP(w, r); err != nil {
		t.Fatal(err)
	}
}

var parsedURL = httptest.NewRequest(http.MethodGet, "/items/1", nil).URL

// The three allocations are what is remembered of the token, the admission, which
// holds the header fields' values and all that it takes to cut the request, and the
// function that answers for the placeholders. A fourth would be a map or a closure
// that slipped in.
func TestTheGuardAllocatesThreeTimes(t *testing.T) {
	p, w := newInProcess(t), httptest.NewRecorder()
	bare := testing.AllocsPerRun(1000, func() { p.pass(t, w, nothing) })
	guarded := testing.AllocsPerRun(1000, func() { p.pass(t, w, p.guarded) })
	if more := guarded - bare; more > 3 {
		t.Errorf("the guard allocates %v times for a request, want 3", more)
	}
}

func BenchmarkGuard(b *testing.B) {
	p, w := newInProcess(b), httptest.NewRecorder()
	for name, h := range map[string]caddyhttp.Handler{"nothing": nothing, "guard": p.guarded} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p.pass(b, w, h)
			}
		})
	}
}
