package handler_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

// errorSite proxies to one upstream, and where that fails, or a guard refuses, to
// another, behind a guard of its own.
func errorSite(upstream, path, other string) string {
	return site("", "", `client_credentials
reverse_proxy `+upstream+`
handle_errors {
	bearer_auth
	rewrite * `+path+`
	reverse_proxy `+other+`
}`)
}

// What one guard has refused does not pass another one in the error route.
func TestARefusedRequestPassesNoGuardOfAnErrorRoute(t *testing.T) {
	address, ended := newStreamUpstream(t)
	s := run(t, errorSite(address, "/", address))
	c := s.CreateWith(t)
	token := s.Token(t, c)
	time.AfterFunc(300*time.Millisecond, func() { s.Revoke(t, c) })
	resp := s.Do(t, http.MethodGet, "/late?after=5s", "", testserver.Bearer(token)...)
	wantStatus(t, resp, http.StatusUnauthorized)
	wantMatch(t, "the challenge", resp.Header.Get("WWW-Authenticate"), `error="invalid_token"`)
	if body := testserver.Body(t, resp); body != "" {
		t.Errorf("the answer is %q", body)
	}
	wantEnded(t, ended, "/late")

	limited, _ := createGranted(t, s, manage(t, s), `{"requestsPerSecond":2}`)
	if resp := tooMany(t, s, s.Token(t, limited)); resp == nil {
		t.Error("who has used up a limit is admitted in the error route")
	}
}

// A good token is good there too, for as long as it is.
func TestAnAnswerOfAnErrorRouteEndsWithItsToken(t *testing.T) {
	address, ended := newStreamUpstream(t)
	s := run(t, errorSite("127.0.0.1:1", "/silent", address))
	c := s.CreateWith(t)
	resp := open(t, s, "/x", s.Token(t, c))
	s.Revoke(t, c)
	revoked := time.Now()
	if late := ends(t, resp.Body).Sub(revoked); late > time.Second {
		t.Errorf("it ended %v after its token was revoked", late)
	}
	wantEnded(t, ended, "/silent")
}

func TestIdentityTrailersDoNotReachTheUpstreamOfAnErrorRoute(t *testing.T) {
	t.Setenv("OTEL_TRACES_EXPORTER", "none")
	s := run(t, site("", "", `tracing
client_credentials
handle_errors {
	bearer_auth {
		optional
	}
	reverse_proxy {{upstream}}
}`))
	wantStatus(t, raw(t, s, crlf(fmt.Sprintf("POST /x HTTP/1.1\nHost: localhost:%d\nTransfer-Encoding: chunked\nTrailer: X-Other\n\n"+
		"2\nhi\n0\nX-Other: kept\nX-Client-Id: spoof\n\n", s.Port))), http.StatusOK)
	got := wantUpstream(t, s)
	if got.Trailer.Get("X-Client-Id") != "" || got.Trailer.Get("X-Other") != "kept" {
		t.Errorf("the upstream saw the trailers %v", got.Trailer)
	}
}
