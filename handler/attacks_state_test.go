package handler_test

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

const remembered = attacked + `
bearer_auth /other/* {
	audience urn:other
}`

// What a guard remembers of a token must not outlive the reasons for it.
func TestWhatAGuardRemembersIsNotUsedAgainstIt(t *testing.T) {
	k := runKeyed(t, "ES256", remembered)
	bothVersions(t, k.Server, func(t *testing.T) { tryAll(t, k, stateAttacks) })
}

var stateAttacks = []attack{
	{"I-01 until it expires", func(t *testing.T, k *keyed) {
		token := k.withClaims(t, "exp", fromNow(2*time.Second, ""))
		k.wantAccepted(t, token)
		time.Sleep(2100 * time.Millisecond)
		k.wantRefusedEverywhere(t, token)
	}},
	{"I-03 until it is revoked", func(t *testing.T, k *keyed) {
		token := k.Token(t, k.client)
		k.wantAccepted(t, token)
		wantRevoked(t, ask(t, k.Server, revokePath, k.client, token))
		k.wantRefusedEverywhere(t, token)
	}},
	{"I-05 for the audience of another route", func(t *testing.T, k *keyed) {
		token := k.Token(t, k.client)
		k.wantAccepted(t, token)
		wantRefused(t, k.Server, k.Do(t, "GET", "/other/x", "", testserver.Bearer(token)...), invalidToken)
	}},
	{"I-06 for the scopes of another route", func(t *testing.T, k *keyed) {
		token := k.Token(t, k.client)
		k.wantAccepted(t, token)
		wantRefused(t, k.Server, k.Do(t, "GET", "/rw/x", "", testserver.Bearer(token)...), lacksWrite)
	}},
	{"I-07 under the rules of an earlier configuration", func(t *testing.T, k *keyed) {
		token := k.Token(t, k.client)
		k.wantAccepted(t, token)
		k.reload(t, strings.Replace(remembered, "/r/* read", "/r/* admin", 1))
		wantRefused(t, k.Server, k.Do(t, "GET", "/r/x", "", testserver.Bearer(token)...), fmt.Sprintf(insufficientScope, "admin"))
		k.reload(t, remembered)
		k.wantAccepted(t, token)
	}},
	{"I-08 with one letter changed", func(t *testing.T, k *keyed) {
		token := k.Token(t, k.client)
		k.wantAccepted(t, token)
		for n := 0; n < len(token); n += 7 {
			letter := "A"
			if token[n] == 'A' {
				letter = "B"
			}
			k.wantRefusedEverywhere(t, token[:n]+letter+token[n+1:])
		}
	}},
	{"I-14 by many at once, the first time", func(t *testing.T, k *keyed) {
		token := k.Token(t, k.client)
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				if resp := k.Do(t, "GET", "/r/x", "", testserver.Bearer(token)...); resp.StatusCode != http.StatusOK {
					t.Error(resp.Status)
				}
			})
		}
		all.Wait()
		k.Upstream.Take()
	}},
	{"L-01 a revoked token that was never used before", func(t *testing.T, k *keyed) {
		token := k.Token(t, k.client)
		wantRevoked(t, ask(t, k.Server, revokePath, k.client, token))
		k.wantRefusedEverywhere(t, token)
	}},
	{"L-02 all tokens of a revoked client, the newest too", func(t *testing.T, k *keyed) {
		manager := manage(t, k.Server)
		c := k.CreateWith(t, "read")
		tokens := []string{k.Token(t, c), k.Token(t, c)}
		k.wantAccepted(t, tokens[0])
		wantStatus(t, k.Do(t, "DELETE", credentialsPath+"/"+c.ClientID, "", testserver.Bearer(manager)...), http.StatusNoContent)
		for _, token := range tokens {
			k.wantRefusedEverywhere(t, token)
		}
	}},
	{"L-04 after a restart", func(t *testing.T, k *keyed) {
		token := k.Token(t, k.client)
		wantRevoked(t, ask(t, k.Server, revokePath, k.client, token))
		if err := caddy.Stop(); err != nil {
			t.Fatal(err)
		}
		k.reload(t, remembered)
		k.wantRefusedEverywhere(t, token)
	}},
	{"L-07 revocations of what does not count", func(t *testing.T, k *keyed) {
		for _, token := range []string{"x", k.withClaims(t, "exp", fromNow(-time.Second, "")), k.stranger(t).token(t, k.header(), k.claims())} {
			wantRevoked(t, ask(t, k.Server, revokePath, k.client, token))
		}
		k.wantAccepted(t, k.Token(t, k.client))
	}},
	{"L-09 the siblings of a revoked token", func(t *testing.T, k *keyed) {
		for range 20 {
			token, sibling := k.Token(t, k.client), k.Token(t, k.client)
			wantRevoked(t, ask(t, k.Server, revokePath, k.client, token))
			k.wantAccepted(t, sibling)
		}
	}},
	{"L-10 a good token in the query as a decoy", func(t *testing.T, k *keyed) {
		revoked, good := k.Token(t, k.client), k.Token(t, k.client)
		wantRevoked(t, ask(t, k.Server, revokePath, k.client, revoked))
		path := "/r/x?" + url.Values{"access_token": {good}}.Encode()
		wantRefused(t, k.Server, k.Do(t, "GET", path, "", testserver.Bearer(revoked)...), invalidToken)
	}},
	{"L-11 what a forged token says, where a token is optional", func(t *testing.T, k *keyed) {
		forged := k.stranger(t).token(t, k.header(), k.claims())
		wantRefused(t, k.Server, k.Do(t, "GET", "/opt/x", "", testserver.Bearer(forged)...), invalidToken)
	}},
	{"L-12 a token without an id, which could not be revoked", func(t *testing.T, k *keyed) {
		k.wantRefusedEverywhere(t, k.withClaims(t, "jti", ""))
	}},
}

// reload loads other directives, and leaves them loaded when the test ends.
func (k *keyed) reload(t *testing.T, directives string) {
	t.Helper()
	if err := k.Load(site(ownKey, "", directives)); err != nil {
		t.Fatal(err)
	}
}

func (k *keyed) wantAccepted(t *testing.T, token string) {
	t.Helper()
	for range 2 { // verified, and remembered
		wantStatus(t, k.Do(t, "GET", "/r/x", "", testserver.Bearer(token)...), http.StatusOK)
		wantUpstream(t, k.Server)
	}
}

func (k *keyed) wantRefusedEverywhere(t *testing.T, token string) {
	t.Helper()
	for _, path := range []string{"/r/x", "/opt/x", "/all/x"} {
		wantRefused(t, k.Server, k.Do(t, "GET", path, "", testserver.Bearer(token)...), invalidToken)
	}
	wantInactive(t, ask(t, k.Server, introspectPath, k.CreateWith(t, issuer.ScopeIntrospect), token))
}
