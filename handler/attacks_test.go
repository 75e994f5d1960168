package handler_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

// attack is what a guard must hold against. Its name begins with its number:
// A is about algorithms and keys, B the bytes of a token, C its JSON, D its
// claims, E how it is presented, F paths and methods, G what the upstream sees,
// H scopes and statuses, I what a guard remembers, K logs, errors and metrics,
// L revocation.
type attack struct {
	name string
	try  func(t *testing.T, k *keyed)
}

var attackNumbers = slices.Concat(
	numbers("A", 26), numbers("B", 22), numbers("C", 14), numbers("D", 22), numbers("E", 20),
	numbers("F", 14), numbers("G", 13), numbers("H", 11), numbers("I", 14), numbers("K", 8),
	numbers("L", 15),
)

func numbers(section string, last int) (all []string) {
	for n := 1; n <= last; n++ {
		all = append(all, fmt.Sprintf("%s-%02d", section, n))
	}
	return all
}

// notApplicable says which attacks have nothing to begin with here, and why.
var notApplicable = map[string]string{
	"A-09": "Keys come from the own store and signing_key alone, and each has its one algorithm: the guard reads no key set of another.",
	"A-16": "A token without kid is refused (A-15), so no keys are tried one after the other.",
	"A-17": "The guard reads no key set of another, and the own kids are thumbprints: two keys never share one.",
	"A-18": "The guard reads no key set of another, and no own key is symmetric.",
	"A-19": "The guard reads no key set of another; those of clients are tested where they are registered.",
	"A-20": "The guard reads no key set of another; a short RSA key in signing_key is refused when the configuration is loaded.",
	"A-22": "The guard reads no key set of another; those of clients are tested where they are registered.",
	"A-23": "The guard reads no key set of another, and there is no DPoP.",
	"A-24": "The guard fetches nothing; what is fetched for client assertions is tested in internal/fetch and issuer.",
	"A-25": "The guard fetches nothing; what is fetched for client assertions is tested in internal/fetch and issuer.",
	"C-13": "There are no roles, and no rule about any claim but scope.",
	"D-18": "There are no users: a subject is always the client itself, and client ids are the server's own random ones.",
	"E-09": "A token in the query is never taken.",
	"E-17": "A token in a cookie is never taken.",
	"E-18": "A token in a WebSocket subprotocol is never taken.",
	"F-13": "Early data reaches Caddy by HTTP/3 alone, and whether it is taken is an option of Caddy's server (allow_0rtt).",
	"H-08": "The guard exempts no preflight; examples/cors answers them in front of it, and its walk tests that.",
	"H-11": "There is one scheme to challenge for, Bearer.",
	"I-02": "The clock is not the test's to set; every use of a token compares it with the wall clock.",
	"I-04": "A key is taken away by no command yet; one that was replaced verifies until its tokens have expired, by design.",
	"I-09": "The bound of the cache is tested in internal/lru.",
	"I-10": "The tests of issuer check after each forgery that nothing of it is kept.",
	"I-11": "What follows the guard sees text that is made for each request, and no claims.",
	"I-12": "Tokens are not introspected elsewhere.",
	"I-13": "The maps of Go, which hold what is remembered, are seeded.",
	"K-01": "No key is symmetric, so that no MAC is compared; signatures are checked with public values.",
	"K-07": "Fuzz tests stand beside the parsers.",
	"L-03": "Nothing is revoked by its date.",
	"L-05": "There is one node.",
	"L-06": "There is one node.",
	"L-08": "The tests of issuer check that revocations are forgotten when their tokens have expired.",
	"L-13": "No key is revoked by itself yet.",
	"L-14": "There is one node.",
	"L-15": "The guard reads no key set of another; that the one of a client is replaced, not merged, is tested in issuer.",
}

func TestEveryNumberedAttackIsTriedOrCannotBe(t *testing.T) {
	tried := map[string]bool{}
	for _, a := range slices.Concat(
		tokenAttacks, claimAttacks, byteAttacks, ecdsaAttacks, ed25519Attacks, rsaAttacks,
		requestAttacks, rawAttacks, upstreamAttacks, rawUpstreamAttacks, logAttacks,
		pathAttacks, rawPathAttacks, exemptionAttacks, stateAttacks,
	) {
		tried[a.name[:4]] = true
	}
	for _, number := range attackNumbers {
		if _, cannot := notApplicable[number]; tried[number] == cannot {
			t.Errorf("%s: tried is %v, and said not to apply is %v", number, tried[number], cannot)
		}
		delete(tried, number)
	}
	if len(tried) > 0 {
		t.Errorf("no such numbers: %v", tried)
	}
	for number := range notApplicable {
		if !slices.Contains(attackNumbers, number) {
			t.Errorf("no such number: %s", number)
		}
	}
}

const attacked = `header /cors/* Access-Control-Allow-Origin *
client_credentials /all/*
bearer_auth /r/* read
bearer_auth /rw/* read write
bearer_auth /any/* read admin {
	any
}
bearer_auth /cors/*
bearer_auth /opt/* {
	optional
}
bearer_auth /fwd/* {
	forward_token
}
bearer_auth /realm/* {
	realm "a, b=c; error=x"
}
bearer_auth /method/* read
@delete {
	path /method/*
	method DELETE
}
bearer_auth @delete write
bearer_auth /own/*
reverse_proxy /own/* {{upstream}} {
	lb_try_duration 5s
}
reverse_proxy {{upstream}}`

func TestNoTokenGetsPastTheGuardThatShouldNot(t *testing.T) {
	for alg, further := range map[string][]attack{"ES256": ecdsaAttacks, "EdDSA": ed25519Attacks, "RS256": rsaAttacks} {
		t.Run(alg, func(t *testing.T) {
			k := runKeyed(t, alg, attacked)
			bothVersions(t, k.Server, func(t *testing.T) {
				tryAll(t, k, tokenAttacks, claimAttacks, byteAttacks, further)
			})
			wantNothingSentInTheLog(t, k)
		})
	}
}

func TestNoRequestGetsPastTheGuardThatShouldNot(t *testing.T) {
	own := &ownMinded{}
	server := httptest.NewServer(own)
	t.Cleanup(server.Close)
	k := runKeyed(t, "ES256", strings.Replace(attacked, "{{upstream}}", server.Listener.Addr().String(), 1))
	k.own = own
	bothVersions(t, k.Server, func(t *testing.T) {
		tryAll(t, k, requestAttacks, upstreamAttacks)
	})
	tryAll(t, k, rawAttacks, rawUpstreamAttacks)
	bothVersions(t, k.Server, func(t *testing.T) { tryAll(t, k, logAttacks) }) // of all that was tried
}

func tryAll(t *testing.T, k *keyed, tables ...[]attack) {
	t.Helper()
	before := runtime.NumGoroutine()
	for _, a := range slices.Concat(tables...) {
		t.Run(a.name, func(t *testing.T) { a.try(t, k) })
	}
	// Some connections to the upstream stay open; a goroutine for each attack
	// would be many more.
	growth := func() int { return runtime.NumGoroutine() - before }
	for deadline := time.Now().Add(5 * time.Second); growth() > 100 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	if n := growth(); n > 100 {
		t.Errorf("%d goroutines are left", n)
	}
}

// What comes of a request where it is not one of the guard's refusals.
const (
	admitted     = "admitted"
	malformed    = "400 by the server"
	headerTooBig = "431 by the server"
	notServed    = "200 by the server" // Caddy's answer where no site has the host
)

// lacksWrite is the guard's refusal of who may only read.
var lacksWrite = fmt.Sprintf(insufficientScope, "read write")

// wantOutcome checks what came of a request. The scope is that of the token,
// which the upstream must see where it is let through.
func (k *keyed) wantOutcome(t *testing.T, resp *http.Response, want, scope string) {
	t.Helper()
	if strings.HasSuffix(want, " by the server") {
		if got := fmt.Sprint(resp.StatusCode, " by the server"); got != want || testserver.Body(t, resp) != "" && want == notServed {
			t.Errorf("%s, want %s", got, want)
		}
		wantNoUpstream(t, k.Server)
		return
	}
	if want != admitted {
		wantRefused(t, k.Server, resp, want)
		return
	}
	wantStatus(t, resp, http.StatusOK)
	got := wantUpstream(t, k.Server).Header
	for name, value := range map[string]string{"X-Client-Id": k.client.ClientID, "X-Client-Scope": scope, "Authorization": ""} {
		if values := strings.Join(got.Values(name), " | "); values != value {
			t.Errorf("the upstream sees %s: %q, want %q", name, values, value)
		}
	}
}

// variant is one of the tokens of which each alone is the attack.
type variant struct{ name, token string }

type forge func(t testing.TB, k *keyed) []variant

// tokens presents each of the tokens.
func tokens(want string, forges ...forge) func(*testing.T, *keyed) {
	return func(t *testing.T, k *keyed) {
		present := k.present
		if present == nil {
			present = k.presentToGuard
		}
		for _, f := range forges {
			for _, v := range f(t, k) {
				t.Run(short(v.name), func(t *testing.T) { present(t, v.token, want) })
			}
		}
	}
}

// presentToGuard asks for a path for which only what makes the attack is wrong
// with the token.
func (k *keyed) presentToGuard(t *testing.T, token, want string) {
	t.Helper()
	k.sent = append(k.sent, token)
	path, scope := "/r/x", ""
	switch want {
	case lacksWrite:
		path = "/rw/x"
	case admitted:
		scope, _ = decode(t, token, 1)["scope"].(string)
	}
	begin := time.Now()
	resp := k.Do(t, "GET", path, "", testserver.Bearer(token)...)
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("the answer took %s", took)
	}
	k.wantOutcome(t, resp, want, scope)
}

func short(name string) string {
	return strings.ReplaceAll(name[:min(len(name), 60)], "\n", " ")
}

// headers are tokens with a header parameter changed to each of the JSON texts.
func headers(name string, values ...string) forge {
	return func(t testing.TB, k *keyed) (all []variant) {
		for _, value := range values {
			all = append(all, variant{name + " " + value, k.withHeader(t, name, value)})
		}
		return all
	}
}

// claims are tokens with a claim changed to each of the JSON texts.
func claims(name string, values ...string) forge {
	return func(t testing.TB, k *keyed) (all []variant) {
		for _, value := range values {
			all = append(all, variant{name + " " + value, k.withClaims(t, name, value)})
		}
		return all
	}
}

// payloads are tokens whose whole payload is what the function makes of the
// right one.
func payloads(change func(claims string) []string) forge {
	return func(t testing.TB, k *keyed) (all []variant) {
		for _, payload := range change(k.claims()) {
			all = append(all, variant{"payload " + payload, k.token(t, k.header(), payload)})
		}
		return all
	}
}

// wholeHeaders are the same with the header.
func wholeHeaders(change func(header string) []string) forge {
	return func(t testing.TB, k *keyed) (all []variant) {
		for _, header := range change(k.header()) {
			all = append(all, variant{"header " + header, k.token(t, header, k.claims())})
		}
		return all
	}
}

// fromNow writes a time as a NumericDate, with what else is behind it.
func fromNow(d time.Duration, behind string) string {
	return fmt.Sprint(time.Now().Add(d).Unix()) + behind
}

// asks sends requests, written as for send.
func asks(want string, requests ...string) func(*testing.T, *keyed) {
	return each((*keyed).send, requests, func(t *testing.T, k *keyed, resp *http.Response) { k.wantOutcome(t, resp, want, "read") })
}

// asksRaw sends what no client would, over HTTP/1.1.
func asksRaw(want string, requests ...string) func(*testing.T, *keyed) {
	return each((*keyed).sendRaw, requests, func(t *testing.T, k *keyed, resp *http.Response) { k.wantOutcome(t, resp, want, "read") })
}

func each(
	send func(*keyed, testing.TB, string) *http.Response, requests []string, check func(*testing.T, *keyed, *http.Response),
) func(*testing.T, *keyed) {
	return func(t *testing.T, k *keyed) {
		for _, text := range requests {
			t.Run(short(text), func(t *testing.T) { check(t, k, send(k, t, k.expand(t, text))) })
		}
	}
}

// expand writes tokens into a request: {T} and {U} are good ones, {none} has no
// scope, {M} is a good one where none belongs, and {basic} is HTTP Basic.
func (k *keyed) expand(t testing.TB, text string) string {
	t.Helper()
	jti := func(id string) string { return k.withClaims(t, "jti", quote(fmt.Sprint(id, len(k.sent)))) }
	good, other, misplaced := jti("t"), jti("u"), jti("m")
	none, pair := k.withClaims(t, "scope", ""), strings.TrimPrefix(basic(k.client.ClientID, k.client.Secret), "Basic ")
	k.sent = append(k.sent, good, other, none, pair)
	k.misplaced = append(k.misplaced, misplaced)
	return strings.NewReplacer("{T}", good, "{U}", other, "{none}", none, "{M}", misplaced, "{basic}", pair,
		"{id}", k.client.ClientID, "{port}", fmt.Sprint(k.Port)).Replace(text)
}

// send sends a request that is written as method and target, header fields,
// an empty line, the body, an empty line and trailers.
func (k *keyed) send(t testing.TB, text string) *http.Response {
	t.Helper()
	head, rest, _ := strings.Cut(text, "\n\n")
	body, trailer, _ := strings.Cut(rest, "\n\n")
	line, lines, _ := strings.Cut(head, "\n")
	method, target, _ := strings.Cut(line, " ")
	req, err := http.NewRequestWithContext(t.Context(), method, k.URL("/"), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasPrefix(target, "//") {
		req.URL.Path = target
	} else {
		req.URL.Opaque = target // unchanged
	}
	if req.Header = fields(lines); req.Header.Get("Host") != "" {
		req.Host = req.Header.Get("Host")
		req.Header.Del("Host")
	}
	if trailer != "" {
		req.Trailer, req.ContentLength = fields(trailer), -1
	}
	return k.Send(t, req)
}

// fields keeps the names as they are.
func fields(lines string) http.Header {
	header := http.Header{}
	for line := range strings.SplitSeq(lines, "\n") {
		if name, value, ok := strings.Cut(line, ": "); ok {
			header[name] = append(header[name], value)
		}
	}
	return header
}

// sendRaw sends a request that is written likewise, but as it is.
func (k *keyed) sendRaw(t testing.TB, text string) *http.Response {
	t.Helper()
	head, body, _ := strings.Cut(text, "\n\n")
	line, lines, _ := strings.Cut(head, "\n")
	return raw(t, k.Server, crlf(fmt.Sprintf("%s HTTP/1.1\nHost: localhost:%d\nConnection: close\n%s\n\n%s",
		line, k.Port, lines, body)))
}

// ownMinded is an upstream that refuses in its own name, and hangs up on every
// other request.
type ownMinded struct {
	requests atomic.Int32
	seen     chan http.Header
}

func (o *ownMinded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if o.seen != nil {
		o.seen <- r.Header.Clone()
	}
	if strings.HasSuffix(r.URL.Path, "/again") && o.requests.Add(1)%2 == 1 {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="upstream"`)
	w.Header().Set("X-Client-Id", "upstream")
	w.WriteHeader(http.StatusUnauthorized)
}
