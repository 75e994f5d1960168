package handler_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

// requestAttacks are what any client can send, by either version of HTTP.
var requestAttacks = []attack{
	{"E-01 no Authorization", asks(noToken, "GET /r/x", "POST /r/x\n\nbody", "GET /r/x\nAuthorization: ")},
	{"E-02 the scheme in any letter case", asks(
		admitted,
		"GET /r/x\nAuthorization: Bearer {T}", "GET /r/x\nAuthorization: bearer {T}", "GET /r/x\nAuthorization: BEARER {T}", "GET /r/x\nAuthorization: BeArEr {T}",
	)},
	{"E-03 more spaces than one", asks(admitted, "GET /r/x\nAuthorization: Bearer  {T}", "GET /r/x\nAuthorization: Bearer     {T}")},
	{"E-03 spaces behind the token", func(t *testing.T, k *keyed) {
		want := admitted
		if k.HTTP == 2 { // where they are part of the value, and not allowed (RFC 9113 section 8.2.1)
			want = invalidRequest
		}
		asks(want, "GET /r/x\nAuthorization: Bearer {T} ", "GET /r/x\nAuthorization: Bearer {T}  ")(t, k)
	}},
	{"E-03 a tab", asks(invalidRequest, "GET /r/x\nAuthorization: Bearer\t{T}", "GET /r/x\nAuthorization: Bearer \t{T}")},
	{"E-04 not one token", asks(
		invalidRequest,
		"GET /r/x\nAuthorization: Bearer", "GET /r/x\nAuthorization: Bearer ", "GET /r/x\nAuthorization: Bearer {T} {U}", "GET /r/x\nAuthorization: Bearer {T}, Bearer {U}",
		"GET /r/x\nAuthorization: Bearer {T},", "GET /r/x\nAuthorization: Bearer, {T}", "GET /r/x\nAuthorization: Bearer token=\"{T}\"", "GET /r/x\nAuthorization: Bearer é",
	)},
	{"E-04 another scheme", asks(
		noToken, "GET /r/x\nAuthorization: Bearer{T}", "GET /r/x\nAuthorization: Basic x, Bearer {T}", "GET /r/x\nAuthorization: DPoP {T}", "GET /r/x\nAuthorization: {T}",
	)},
	{"E-05 two Authorization fields", asks(
		invalidRequest,
		"GET /r/x\nAuthorization: Bearer {T}\nAuthorization: Bearer {U}", "GET /r/x\nAuthorization: Bearer {T}\nAuthorization: Bearer x",
		"GET /r/x\nAuthorization: Bearer x\nAuthorization: Bearer {T}", "GET /r/x\nAuthorization: Basic {basic}\nAuthorization: Bearer {T}",
		"GET /r/x\nAuthorization: Bearer {T}\nAuthorization: ", "GET /opt/x\nAuthorization: Bearer {T}\nAuthorization: Bearer {U}",
	)},
	{"E-06 two Authorization fields of equal value", func(t *testing.T, k *keyed) { // over HTTP/2, where they are fields of their own
		token := k.withHeader(t)
		wantRefused(t, k.Server, k.Do(t, "GET", "/r/x", "", append(testserver.Bearer(token), testserver.Bearer(token)...)...), invalidRequest)
	}},
	{"E-07 a good token beside another", asks(
		admitted, "GET /r/x?access_token=x\nAuthorization: Bearer {T}", "POST /r/x\nAuthorization: Bearer {T}\nContent-Type: "+formType+"\n\naccess_token=x",
	)},
	{"E-07 a bad token beside a good one", asks(
		invalidToken, "GET /r/x?access_token={M}\nAuthorization: Bearer x", "POST /r/x\nAuthorization: Bearer x\nContent-Type: "+formType+"\n\naccess_token={T}",
	)},
	{"E-08 a token in the query", asks(noToken, "GET /r/x?access_token={M}", "GET /r/x?Authorization=Bearer%20{M}", "GET /r/x?bearer_token={M}")},
	{"E-13 Proxy-Authorization", asks(noToken, "GET /r/x\nProxy-Authorization: Bearer {M}")},
	{"E-14 names that resemble Authorization", asks(
		noToken,
		"GET /r/x\nAuthorization_: Bearer {M}", "GET /r/x\nauthorization.: Bearer {M}", "GET /r/x\nX-Authorization: Bearer {M}", "GET /r/x\nX-Forwarded-Authorization: Bearer {M}",
		"GET /r/x\nHTTP_AUTHORIZATION: Bearer {M}",
	)},
	{"E-15 Authorization as a trailer", asks(noToken, "POST /r/x\n\nbody\n\nAuthorization: Bearer {M}")},
	{"E-16 a method in a header field changes nothing", asks(
		admitted, "GET /method/x\nX-HTTP-Method-Override: DELETE\nAuthorization: Bearer {T}", "GET /method/x\nX-HTTP-Method: DELETE\nAuthorization: Bearer {T}",
	)},
	{"E-16 the method decides", asks(fmt.Sprintf(insufficientScope, "write"), "DELETE /method/x\nX-HTTP-Method-Override: GET\nAuthorization: Bearer {T}")},
	{"E-19 a token in the body", asks(
		noToken,
		"POST /r/x\nContent-Type: "+formType+"\n\naccess_token={T}", "GET /r/x\nContent-Type: "+formType+"\n\naccess_token={T}",
		"POST /r/x\nContent-Type: "+jsonType+"\n\n{\"access_token\":\"{T}\"}",
		"POST /r/x\nContent-Type: multipart/form-data; boundary=b\n\n--b\r\nContent-Disposition: form-data; name=access_token\r\n\r\n{T}\r\n--b--",
	)},
	{"E-20 Basic", asks(noToken, "GET /r/x\nAuthorization: Basic {basic}", "GET /r/x\nAuthorization: basic {basic}")},

	{"H-01 too little scope", asks(lacksWrite, "GET /rw/x\nAuthorization: Bearer {T}", "POST /rw/x\nAuthorization: Bearer {T}\n\nbody")},
	{"H-02 no scope", asks(fmt.Sprintf(insufficientScope, "read"), "GET /r/x\nAuthorization: Bearer {none}")},
	{"H-02 no scope, where any of two would do", asks(fmt.Sprintf(insufficientScope, "read admin"), "GET /any/x\nAuthorization: Bearer {none}")},
	{"H-02 one scope, where any of two would do", asks(admitted, "GET /any/x\nAuthorization: Bearer {T}")},
	{"H-03 scope as an array", tokens(invalidToken, claims("scope", `["read"]`, `["read","write"]`, "[]"))},
	{"H-03 scopes under another name", tokens(lacksWrite, claims("scp", `["read","write"]`, `"read write"`), claims("scopes", `["read","write"]`))},
	{"H-04 scopes that only resemble what is needed", tokens(lacksWrite, claims(
		"scope", `"readwrite"`, `"read:all"`, `"READ WRITE"`, `"rea"`, `"read"`, `"write"`, `"read wri"`, `"read writ"`, `"read write:all"`, `"read,write"`, `"*"`,
	))},
	{"H-05 expired, and too little scope", tokens(invalidToken, func(t testing.TB, k *keyed) []variant {
		return []variant{{"", k.withClaims(t, "exp", fromNow(-1, ""), "scope", `"x"`)}}
	})},
	{"H-06 a realm with signs that mean something", func(t *testing.T, k *keyed) {
		resp := k.Do(t, "GET", "/realm/x", "")
		wantMatch(t, "the challenge", resp.Header.Get("WWW-Authenticate"), `^Bearer realm="a, b=c; error=x"`+metadataParam+"$")
		wantRefused(t, k.Server, resp, noToken)
		for _, realm := range []string{`a\"b`, "é", "a\x01b"} {
			if _, err := k.Adapt(site("", "", "bearer_auth {\nrealm \""+realm+"\"\n}")); err == nil {
				t.Errorf("the realm %q is taken", realm)
			}
		}
	}},
	{"H-07 nobody is redirected", asks(noToken, "GET /r/x\nAccept: application/json", "GET /r/x\nAccept: text/html\nUser-Agent: Mozilla/5.0", "GET /r/x\nX-Requested-With: XMLHttpRequest")},
	{"H-09 OPTIONS", asks(
		noToken, "OPTIONS /r/x", "OPTIONS /r/x\nOrigin: https://app.example", "OPTIONS /r/x\nOrigin: https://app.example\nAccess-Control-Request-Method: GET",
	)},
	{"H-10 a page of another origin may read the refusal", func(t *testing.T, k *keyed) {
		for _, c := range []struct{ request, want string }{
			{"GET /cors/x\nOrigin: https://app.example", noToken},
			{"GET /cors/x\nOrigin: https://app.example\nAuthorization: Bearer x", invalidToken},
		} {
			resp := k.send(t, c.request)
			wantHeader(t, resp, "Access-Control-Allow-Origin", "*")
			wantRefused(t, k.Server, resp, c.want)
		}
	}},

	{"K-02 an unknown client or a wrong secret", func(t *testing.T, k *keyed) {
		answer := func(id, secret string) string {
			resp := k.Do(t, "POST", tokenPath, form("grant_type", "client_credentials", "client_id", id, "client_secret", secret), "Content-Type", formType)
			wantStatus(t, resp, http.StatusUnauthorized)
			return fmt.Sprint(resp.Header["Www-Authenticate"], testserver.Body(t, resp))
		}
		if unknown, wrong := answer(strings.Repeat("0", 32), k.client.Secret), answer(k.client.ClientID, k.client.Secret[1:]); unknown != wrong {
			t.Errorf("the answers differ: %s and %s", unknown, wrong)
		}
	}},
}

// rawAttacks are what HTTP/1.1 alone can say, and no client would.
var rawAttacks = []attack{
	{"B-10 control characters within a token", asksRaw(
		malformed,
		"GET /r/x\nAuthorization: Bearer {T}\r{U}", "GET /r/x\nAuthorization: Bearer {T}\n{U}", "GET /r/x\nAuthorization: Bearer {T}\x00", "GET /r/x\nAuthorization: Bearer \x7f{T}",
	)},
	{"B-13 a MiB of dots", asksRaw(headerTooBig, "GET /r/x\nAuthorization: Bearer "+strings.Repeat(".", 1<<20))},
	{"B-14 longer than a header may be", asksRaw(
		headerTooBig,
		"GET /r/x\nAuthorization: Bearer {T}"+strings.Repeat("A", 70<<10), "GET /r/x\nAuthorization: Bearer "+strings.Repeat("a", 1200<<10),
	)},
	{"B-14 longer than a header should be", asksRaw(invalidToken, "GET /r/x\nAuthorization: Bearer {T}"+strings.Repeat("A", 17<<10))},
	{"E-10 a folded line", asksRaw(admitted, "GET /r/x\nAuthorization: Bearer\n {T}")},
	{"E-11 a space before the colon", asksRaw(malformed, "GET /r/x\nAuthorization : Bearer {T}")},
	{"E-12 control characters in the value", asksRaw(
		malformed, "GET /r/x\nAuthorization: Bearer\x00{T}", "GET /r/x\nAuthorization: Bearer {T}\x01", "GET /r/x\nAuthorization: Bearer {T}\x1b[31m",
	)},
	{"E-15 Authorization as a trailer, announced or not", asksRaw(
		noToken,
		"POST /r/x\nTransfer-Encoding: chunked\n\n2\nhi\n0\nAuthorization: Bearer {T}\n\n", "POST /r/x\nTransfer-Encoding: chunked\nTrailer: Authorization\n\n2\nhi\n0\nAuthorization: Bearer {T}\n\n",
	)},
	{"F-12 an upgrade to HTTP/2", asksRaw(
		noToken,
		"GET /r/x\nUpgrade: h2c\nConnection: Upgrade, HTTP2-Settings\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA", "GET /r/x\nUpgrade: websocket\nConnection: Upgrade",
	)},
}

// Each field's value that a client makes up is "spoof".
const trueIdentity = "X-Client-Id: {id}\nX-Client-Scope: read\nX-Client-Account: default\nAuthorization: "

const noIdentity = "X-Client-Id: \nX-Client-Scope: \nX-Client-Account: \nAuthorization: "

var upstreamAttacks = []attack{
	{"G-01 a client id that the client made up", sees(trueIdentity, "GET /r/x\nAuthorization: Bearer {T}\nX-Client-Id: spoof\nX-Client-Scope: spoof\nX-Client-Account: spoof")},
	{"G-02 one that the token does not replace", sees(
		"X-Client-Id: {id}\nX-Client-Scope: \nX-Client-Account: default", "GET /all/x\nAuthorization: Bearer {none}\nX-Client-Scope: spoof", "GET /opt/x\nAuthorization: Bearer {none}\nX-Client-Scope: spoof",
	)},
	{"G-03 one without a token", sees(
		noIdentity, "GET /opt/x\nX-Client-Id: spoof\nX-Client-Scope: spoof\nX-Client-Account: spoof", "GET /pub\nX-Client-Id: spoof\nX-Client-Scope: spoof\nX-Client-Account: spoof",
	)},
	{"G-04 in other letters, repeated or as a list", sees(
		trueIdentity,
		"GET /r/x\nAuthorization: Bearer {T}\nx-client-id: spoof\nX-CLIENT-SCOPE: spoof\nx-Client-aCCOUNT: spoof",
		"GET /r/x\nAuthorization: Bearer {T}\nX-Client-Id: spoof\nX-Client-Id: spoof\nX-Client-Id: {id}", "GET /r/x\nAuthorization: Bearer {T}\nX-Client-Id: {id}, spoof",
	)},
	{"G-05 with underscores", respelled("X_Client_Id", "X-Client_Id", "x_client-id", "X-Client_Scope", "X_CLIENT_ACCOUNT")},
	{"G-06 with dots or other signs", respelled("X.Client.Id", "X-Client.Id", "X-Client.Account", "x~client~id", "x!client#scope")},
	{"G-09 the token stays here", sees("Authorization: ", "GET /r/x\nAuthorization: Bearer {T}", "GET /all/x\nAuthorization: Bearer {T}", "GET /opt/x\nAuthorization: Bearer {T}")},
	{"G-09 unless it is asked for, or the path is not guarded", func(t *testing.T, k *keyed) {
		for _, path := range []string{"/fwd/x", "/pub"} {
			token := k.withHeader(t)
			k.Do(t, "GET", path, "", testserver.Bearer(token)...)
			if got := wantUpstream(t, k.Server).Header.Get("Authorization"); got != "Bearer "+token {
				t.Errorf("%s: the upstream sees %q", path, got)
			}
		}
	}},
	{"G-10 as a trailer", sees(
		trueIdentity, "POST /r/x\nTE: trailers\nAuthorization: Bearer {T}\n\nbody\n\nX-Client-Id: spoof\nx-client-scope: spoof\nX-Client_Account: spoof",
	)},
	{"G-10 as a trailer, without a token", sees(noIdentity, "POST /pub\nTE: trailers\n\nbody\n\nX-Client-Id: spoof\nX_Client_Scope: spoof", "POST /opt/x\n\nbody\n\nX-Client-Id: spoof")},
	{"G-11 a scope that is too long for a header", tokens(invalidToken, claims("scope", quote(strings.Repeat("a", 257)), quote("read "+strings.Repeat("a", 9000))))},
	{"G-12 a refusal by the upstream itself", func(t *testing.T, k *keyed) {
		before := metrics(t, k.Server)
		resp := k.Do(t, "GET", "/own/x", "", testserver.Bearer(k.withHeader(t))...)
		wantStatus(t, resp, http.StatusUnauthorized)
		wantHeader(t, resp, "WWW-Authenticate", `Basic realm="upstream"`)
		wantHeader(t, resp, "X-Client-Id", "upstream")
		for counter, value := range metrics(t, k.Server) {
			// The token is the test's own.
			signed := counter == `signature_checks_total{result="good"}` || counter == `token_cache_lookups_total{result="miss"}`
			if admitted := signed || strings.Contains(counter, `result="admitted"`); value != before[counter] && !admitted || value != before[counter]+1 && admitted {
				t.Errorf("%s went from %d to %d", counter, before[counter], value)
			}
		}
	}},
	{"G-13 the upstream hangs up, and is asked again", func(t *testing.T, k *keyed) {
		k.own.seen = make(chan http.Header, 10)
		defer func() { k.own.seen = nil }()
		wantStatus(t, k.send(t, k.expand(t, "GET /own/again\nAuthorization: Bearer {T}\nX-Client-Id: spoof")), http.StatusUnauthorized)
		close(k.own.seen)
		requests := 0
		for header := range k.own.seen {
			requests++
			if got := fmt.Sprint(header["X-Client-Id"], header["X-Client-Scope"], header["Authorization"]); got != fmt.Sprintf("[%s] [read] []", k.client.ClientID) {
				t.Errorf("the upstream sees %s", got)
			}
		}
		if requests != 2 {
			t.Errorf("the upstream was asked %d times, want 2", requests)
		}
	}},
}

var rawUpstreamAttacks = []attack{
	{"G-07 Connection with the names of the identity", seesRaw(
		trueIdentity,
		"GET /r/x\nAuthorization: Bearer {T}\nConnection: X-Client-Id", "GET /r/x\nAuthorization: Bearer {T}\nConnection: close, x-client-id, X-Client-Scope,x-client-account\nX-Client-Id: spoof",
		"GET /r/x\nAuthorization: Bearer {T}\nConnection: keep-alive\nConnection: X-Client-Account, X_Client_Id\nKeep-Alive: X-Client-Id", "GET /r/x\nAuthorization: Bearer {T}\nConnection: Authorization",
	)},
	{"G-07 Connection with the names of the identity, without a token", seesRaw(noIdentity, "GET /opt/x\nConnection: X-Client-Id\nX-Client-Id: spoof", "GET /pub\nConnection: x-client-id\nX-Client-Id: spoof")},
	{"G-08 Connection with Authorization, where it goes on", func(t *testing.T, k *keyed) {
		for _, name := range []string{"Authorization", "close, authorization", "AUTHORIZATION,X-Client-Id"} {
			token := k.withHeader(t)
			wantStatus(t, k.sendRaw(t, "GET /fwd/x\nAuthorization: Bearer "+token+"\nConnection: "+name), http.StatusOK)
			if got := wantUpstream(t, k.Server).Header; got.Get("Authorization") != "Bearer "+token || got.Get("X-Client-Id") != k.client.ClientID {
				t.Errorf("%s: the upstream sees %v", name, got)
			}
		}
	}},
	{"G-10 as a trailer, announced or not", seesRaw(
		noIdentity,
		"POST /pub\nTransfer-Encoding: chunked\nTrailer: X-Other\n\n2\nhi\n0\nX-Client-Id: spoof\nx-client-scope: spoof\n\n",
		"POST /pub\nTransfer-Encoding: chunked\nTrailer: X-Other, X-Client-Id\n\n2\nhi\n0\nX-Client-Id: spoof\nX-Client.Scope: spoof\n\n",
		"POST /opt/x\nTransfer-Encoding: chunked\n\n2\nhi\n0\nX-Client-Id: spoof\n\n",
	)},
}

// logAttacks come last, since they look at what all have left behind.
var logAttacks = []attack{
	{"K-03 a bad signature", func(t *testing.T, k *keyed) {
		good := k.withHeader(t)
		before := len(logLines(t, k.Server))
		resp := k.Do(t, "GET", "/r/x", "", testserver.Bearer(resigned(good, k.sign(t, "x.y")))...)
		wantMatch(t, "the challenge", resp.Header.Get("WWW-Authenticate"),
			`^Bearer realm="[^"]+", error="invalid_token", error_description="the token is invalid, expired or revoked"`+metadataParam+"$")
		wantRefused(t, k.Server, resp, invalidToken)
		told := 0
		for _, line := range logLines(t, k.Server)[before:] {
			if line["msg"] != "request refused" {
				continue
			}
			told++
			for _, name := range []string{"level", "ts", "logger", "msg", "status", "method", "path", "remote_ip"} {
				delete(line, name)
			}
			if fmt.Sprint(line) != "map[reason:wrong signature]" {
				t.Errorf("the log tells more than the reason: %v", line)
			}
		}
		if told != 1 {
			t.Errorf("the log tells of %d refusals, want 1", told)
		}
	}},
	{"K-05 tokens where none belongs", asks(
		noToken,
		"GET /r/x\nReferer: https://app.example/?access_token={M}", "GET /r/x\nX-Api-Key: {M}", "GET /r/x\nDPoP: {M}", "GET /r/x\nCookie: access_token={M}",
		"GET /r/x\nSec-WebSocket-Protocol: bearer, {M}", "GET /r/x?token={M}",
	)},
	{"K-06 line breaks and escapes", func(t *testing.T, k *keyed) {
		before := len(k.Log(t))
		const text = "a\n{\"level\":\"info\",\"msg\":\"injected\"}\n\x1b[31m"
		for _, token := range []string{
			k.withHeader(t, "kid", quote(text)), k.withHeader(t, "alg", quote(text)), k.withHeader(t, "typ", quote(text)), k.withClaims(t, "scope", quote(text)),
			k.withClaims(t, "client_id", quote(text), "sub", quote(text)), k.withClaims(t, "iss", quote(text)),
		} {
			wantRefused(t, k.Server, k.Do(t, "GET", "/r/x", "", testserver.Bearer(token)...), invalidToken)
		}
		if strings.Contains(k.Log(t)[before:], "injected") {
			t.Error("the log has what a refused token says")
		}
		k.Do(t, "POST", tokenPath, form("grant_type", text, "client_id", text, "client_secret", text), "Content-Type", formType)
		wantRefused(t, k.Server, k.Do(t, "GET", "/r/a%0a%7B%22msg%22:%22injected%22%7D%0a%1b[31m", ""), noToken)
		for _, line := range logLines(t, k.Server) { // each of which is JSON
			if line["msg"] == "injected" {
				t.Error("a client has written a line of the log")
			}
		}
		if strings.Contains(k.Log(t), "\x1b") {
			t.Error("a client has written to the terminal of who reads the log")
		}
	}},
	{"K-08 what a client says makes no series of metrics", func(t *testing.T, k *keyed) {
		round := func(n int) int {
			text := quote(fmt.Sprint("made up ", n))
			for _, token := range []string{
				k.withHeader(t, "kid", text), k.withHeader(t, "alg", text), k.withClaims(t, "iss", text), k.withClaims(t, "aud", text),
				k.withClaims(t, "client_id", text, "sub", text), k.withHeader(t, strings.Trim(text, `"`), text),
			} {
				wantRefused(t, k.Server, k.Do(t, "GET", "/r/x", "", testserver.Bearer(token)...), invalidToken)
			}
			k.Do(t, "POST", tokenPath, form("grant_type", text, "client_id", text, "client_secret", text), "Content-Type", formType)
			return len(metrics(t, k.Server))
		}
		first := round(0)
		for n := range 10 {
			if series := round(n + 1); series != first {
				t.Fatalf("%d series of metrics after the first round, then %d", first, series)
			}
		}
		for series := range metrics(t, k.Server) {
			if strings.Contains(series, "made up") {
				t.Errorf("metrics repeat what a client said: %s", series)
			}
		}
	}},
	{"K-04 no token or secret in the log", func(t *testing.T, k *keyed) { wantNothingSentInTheLog(t, k) }},
}

// sees sends requests that reach the upstream, and compares what it sees.
func sees(want string, requests ...string) func(*testing.T, *keyed) {
	return each((*keyed).send, requests, func(t *testing.T, k *keyed, resp *http.Response) { k.wantSeen(t, resp, want) })
}

func seesRaw(want string, requests ...string) func(*testing.T, *keyed) {
	return each((*keyed).sendRaw, requests, func(t *testing.T, k *keyed, resp *http.Response) { k.wantSeen(t, resp, want) })
}

// respelled sends fields under names that some upstream takes for those of the
// identity, to whatever path.
func respelled(names ...string) func(*testing.T, *keyed) {
	return func(t *testing.T, k *keyed) {
		for _, name := range names {
			spoof := "\n" + name + ": spoof"
			sees(noIdentity, "GET /pub"+spoof, "GET /opt/x"+spoof)(t, k)
			sees(trueIdentity, "GET /r/x\nAuthorization: Bearer {T}"+spoof)(t, k)
		}
	}
}

func (k *keyed) wantSeen(t *testing.T, resp *http.Response, want string) {
	t.Helper()
	wantStatus(t, resp, http.StatusOK)
	got := wantUpstream(t, k.Server)
	for name, values := range fields(k.expand(t, want)) {
		if seen := strings.Join(got.Header.Values(name), " | "); seen != values[0] {
			t.Errorf("the upstream sees %s: %q, want %q", name, seen, values[0])
		}
	}
	for _, header := range []http.Header{got.Header, got.Trailer} {
		for name, values := range header {
			if slices.Contains(values, "spoof") {
				t.Errorf("%s reached the upstream", name)
			}
		}
	}
}

// wantNothingSentInTheLog looks for any 16 characters of what was sent.
func wantNothingSentInTheLog(t *testing.T, k *keyed) {
	t.Helper()
	const window = 16
	secret := map[string]bool{}
	for _, text := range append(k.sent, append(k.misplaced, k.client.Secret)...) {
		for _, part := range strings.FieldsFunc(text, notBase64) {
			for at := 0; at+window <= len(part) && part != k.client.ClientID; at++ {
				secret[part[at:at+window]] = true
			}
		}
	}
	if len(secret) < 1000 {
		t.Fatal("nothing to look for")
	}
	log := k.Log(t)
	if strings.Contains(log, "panic") {
		t.Error("the log tells of a panic")
	}
	for line := range strings.Lines(log) {
		rest := line
		if strings.Contains(line, `"logger":"http.log.`) || strings.Contains(line, `"logger":"http.handlers.reverse_proxy"`) {
			for _, token := range k.misplaced { // Caddy's own account of the request
				rest = strings.ReplaceAll(rest, token, "")
			}
		}
		for at := 0; at+window <= len(rest); at++ {
			if secret[rest[at:at+window]] {
				t.Fatalf("the log holds %q, which was sent: %s", rest[at:at+window], line)
			}
		}
	}
}

func notBase64(c rune) bool {
	return c > 'z' || !strings.ContainsRune("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+/=", c)
}
