package handler_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

func limitedSite(setting string) string {
	return site("", "servers {\ntrusted_proxies static 127.0.0.1/32\n}", "client_credentials {\n"+setting+"\n}\nreverse_proxy {{upstream}}")
}

// fail asks for a token with a wrong secret, for a client behind a proxy.
func fail(t testing.TB, s *testserver.Server, clientID, from string) *http.Response {
	t.Helper()
	return s.Do(t, "POST", tokenPath, "grant_type=client_credentials", "Content-Type", formType,
		"Authorization", basic(clientID, "wrong"), "X-Forwarded-For", from)
}

// failuresUntilLimited returns how many are answered as failures, before one is
// told to wait.
func failuresUntilLimited(t testing.TB, s *testserver.Server, clientID func(n int) string, from string) int {
	t.Helper()
	for n := range 1000 {
		resp := fail(t, s, clientID(n), from)
		if resp.StatusCode != http.StatusTooManyRequests {
			wantTokenError(t, resp, http.StatusUnauthorized, "invalid_client")
			continue
		}
		wantTokenError(t, resp, http.StatusTooManyRequests, "temporarily_unavailable")
		wantHeader(t, resp, "Retry-After", "1")
		return n
	}
	return 1000
}

func one(clientID string) func(int) string { return func(int) string { return clientID } }

func many(n int) string { return fmt.Sprintf("%032x", n) }

// wantAbout allows for the one a second that comes back.
func wantAbout(t testing.TB, what string, got, want int, since time.Time) {
	t.Helper()
	if spare := int(time.Since(since)/time.Second) + 1; got < want || got > want+spare {
		t.Errorf("%s: %d failures before a limit, want %d and at the most %d more", what, got, want, spare)
	}
}

func TestFailuresAreLimitedAndTheRightSecretIsNot(t *testing.T) {
	s := run(t, limitedSite(""))
	c, other := s.CreateWith(t), s.CreateWith(t)
	start := time.Now()
	wantAbout(t, "a client", failuresUntilLimited(t, s, one(c.ClientID), "192.0.2.1"), 50, start)

	s.Token(t, c) // from whatever address: here the proxy's own
	resp := s.Do(t, "POST", tokenPath, "grant_type=client_credentials", "Content-Type", formType,
		"Authorization", basic(c.ClientID, c.Secret), "X-Forwarded-For", "192.0.2.1")
	wantStatus(t, resp, http.StatusOK)
	wantStatus(t, fail(t, s, other.ClientID, "192.0.2.1"), http.StatusUnauthorized)
	wantStatus(t, fail(t, s, c.ClientID, "192.0.2.2"), http.StatusUnauthorized)

	start = time.Now()
	wantAbout(t, "an address", failuresUntilLimited(t, s, many, "192.0.2.3"), 500, start)
	// It may not even try other endpoints, nor with what is no client id.
	for _, path := range []string{introspectPath, revokePath} {
		resp := s.Do(t, "POST", path, "token=x", "Content-Type", formType, "Authorization", "Basic !", "X-Forwarded-For", "192.0.2.3")
		wantTokenError(t, resp, http.StatusTooManyRequests, "temporarily_unavailable")
	}
	time.Sleep(1100 * time.Millisecond)
	wantStatus(t, fail(t, s, many(7), "192.0.2.3"), http.StatusUnauthorized)
}

func TestTheFailureLimitCanBeSetAndSwitchedOff(t *testing.T) {
	s := run(t, limitedSite("auth_failures 3 7"))
	start := time.Now()
	wantAbout(t, "a client", failuresUntilLimited(t, s, one(many(1)), "192.0.2.1"), 3, start)
	wantAbout(t, "an address", failuresUntilLimited(t, s, many, "192.0.2.2"), 7, start)

	// A reload forgives nothing.
	s.Run(t, limitedSite("auth_failures 3 7"))
	wantAbout(t, "an address, after a reload", failuresUntilLimited(t, s, many, "192.0.2.2"), 0, start)

	s.Run(t, limitedSite("auth_failures off"))
	for n := range 600 {
		wantStatus(t, fail(t, s, many(1), "192.0.2.2"), http.StatusUnauthorized)
		if n > 0 && t.Failed() {
			return
		}
	}
}

// An IPv6 client has a whole /64 network to send from.
func TestAnAddressIsWhatAClientCannotChooseFreely(t *testing.T) {
	for name, addresses := range map[string][2]string{
		"one network":         {"2001:db8:0:1::1", "2001:db8:0:1:ffff::2"},
		"IPv4 in two clothes": {"192.0.2.9", "::ffff:192.0.2.9"},
	} {
		s := run(t, limitedSite("auth_failures 3 3"))
		start := time.Now()
		wantAbout(t, name, failuresUntilLimited(t, s, many, addresses[0]), 3, start)
		wantAbout(t, name, failuresUntilLimited(t, s, many, addresses[1]), 0, start)
		wantStatus(t, fail(t, s, many(1), "2001:db8:0:2::1"), http.StatusUnauthorized)
	}

	// Without a trusted proxy, nobody says where it comes from.
	s := run(t, strings.Replace(limitedSite("auth_failures 3 3"), "trusted_proxies static 127.0.0.1/32", "", 1))
	start := time.Now()
	wantAbout(t, "the peer", failuresUntilLimited(t, s, many, "192.0.2.1"), 3, start)
	wantAbout(t, "the peer, under another name", failuresUntilLimited(t, s, many, "192.0.2.2"), 0, start)
}
