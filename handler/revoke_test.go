package handler_test

import (
	"net/http"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

func wantRevoked(t testing.TB, resp *http.Response) {
	t.Helper()
	wantStatus(t, resp, http.StatusOK)
	wantHeader(t, resp, "Cache-Control", "no-store")
	wantHeader(t, resp, "Content-Type", jsonType)
	if body := testserver.Body(t, resp); body != "{}" {
		t.Errorf("the answer is %s", body)
	}
}

func TestARevokedTokenIsRefusedOnTheNextRequestAndItsSiblingsAreNot(t *testing.T) {
	s := run(t, site("", h2c, "client_credentials\nreverse_proxy {{upstream}}"))
	c := s.CreateWith(t)
	bothVersions(t, s, func(t *testing.T) {
		for range 10 {
			used, unused, sibling := s.Token(t, c), s.Token(t, c), s.Token(t, c)
			wantStatus(t, s.Do(t, "GET", "/x", "", testserver.Bearer(used)...), http.StatusOK)
			wantStatus(t, s.Do(t, "GET", "/x", "", testserver.Bearer(sibling)...), http.StatusOK)
			s.Upstream.Take()
			for _, token := range []string{used, unused} {
				wantRevoked(t, ask(t, s, revokePath, c, token))
				wantRefused(t, s, s.Do(t, "GET", "/x", "", testserver.Bearer(token)...), invalidToken)
				wantInactive(t, ask(t, s, introspectPath, c, token))
				wantRevoked(t, ask(t, s, revokePath, c, token)) // again
			}
			wantStatus(t, s.Do(t, "GET", "/x", "", testserver.Bearer(sibling)...), http.StatusOK)
			s.Upstream.Take()
			// It was looked for among the revoked ones, and was none of them then.
			wantRevoked(t, ask(t, s, revokePath, c, sibling))
			wantRefused(t, s, s.Do(t, "GET", "/x", "", testserver.Bearer(sibling)...), invalidToken)
		}
	})
}

// A signature of ECDSA has two valid forms: what is revoked is the token, not
// its text.
func TestTheSecondFormOfASignatureIsRevokedWithItsToken(t *testing.T) {
	k := runKeyed(t, "ES256", "client_credentials\nreverse_proxy {{upstream}}")
	token := k.Token(t, k.client)
	twin := secondForm(token)
	wantStatus(t, k.Do(t, "GET", "/x", "", testserver.Bearer(twin)...), http.StatusOK)
	k.Upstream.Take()
	wantRevoked(t, ask(t, k.Server, revokePath, k.client, token))
	wantRefused(t, k.Server, k.Do(t, "GET", "/x", "", testserver.Bearer(twin)...), invalidToken)
}

func TestARevokedTokenStaysRevokedThroughReloadAndRestart(t *testing.T) {
	s := run(t, testserver.Simple)
	c := s.CreateWith(t)
	revoked, sibling := s.Token(t, c), s.Token(t, c)
	wantRevoked(t, ask(t, s, revokePath, c, revoked))
	check := func() {
		wantRefused(t, s, s.Do(t, "GET", "/x", "", testserver.Bearer(revoked)...), invalidToken)
		wantStatus(t, s.Do(t, "GET", "/x", "", testserver.Bearer(sibling)...), http.StatusOK)
		s.Upstream.Take()
	}
	s.Run(t, testserver.Simple)
	check()
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	s.Run(t, testserver.Simple)
	check()
}

func TestWhoMayRevokeAToken(t *testing.T) {
	s := run(t, testserver.Simple)
	owner := s.CreateWith(t)
	token := s.Token(t, owner)
	for name, caller := range map[string]testserver.Credential{
		"a stranger":                   s.CreateWith(t, "a", issuer.ScopeWrite, issuer.ScopeIntrospect),
		"a revoker of another account": s.Create(t, issuer.Draft{Account: "other", Scopes: []string{issuer.ScopeRevoke}}),
	} {
		t.Run(name, func(t *testing.T) {
			wantTokenError(t, ask(t, s, revokePath, caller, token), http.StatusBadRequest, "invalid_grant")
			wantStatus(t, s.Do(t, "GET", "/x", "", testserver.Bearer(token)...), http.StatusOK)
			// Of what does not count, nobody learns whose it was.
			wantRevoked(t, ask(t, s, revokePath, caller, "no.such.token"))
		})
	}
	s.Upstream.Take()
	wantRevoked(t, ask(t, s, revokePath, s.CreateWith(t, issuer.ScopeRevoke), token))
	wantRefused(t, s, s.Do(t, "GET", "/x", "", testserver.Bearer(token)...), invalidToken)
}
