package handler_test

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/clientcredentials/caddy-client-credentials/handler"
	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// metrics returns the counters of this plugin, as Caddy's admin endpoint shows
// them, by their text up to the value.
func metrics(t *testing.T, s *testserver.Server) map[string]int {
	t.Helper()
	resp, err := http.Get(fmt.Sprintf("http://%s/metrics", s.Admin))
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]int{}
	for line := range strings.Lines(testserver.Body(t, resp)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "} "); ok && strings.HasPrefix(line, "caddy_client_credentials_") &&
			!strings.Contains(name, "_seconds_") { // times
			n, err := strconv.Atoi(value)
			if err != nil {
				t.Fatal(err)
			}
			values[strings.TrimPrefix(name, "caddy_client_credentials_")+"}"] = n
		}
	}
	return values
}

func TestCountersGoOnThroughReloads(t *testing.T) {
	caddyfile := site("", "", "client_credentials\nbearer_auth /opt/* {\noptional\n}\nreverse_proxy {{upstream}}") +
		"http://localhost:{{port}}/second {\nbearer_auth\nrespond hi\n}\n"
	caddyfile = strings.Replace(caddyfile, "client_credentials\nbearer_auth /opt/*", "client_credentials /all/*\nbearer_auth /opt/*", 1)
	s := run(t, caddyfile)
	before := metrics(t, s)
	c, gone := s.CreateWith(t, issuer.ScopeWrite), s.CreateWith(t)
	round := func() {
		token := testserver.Bearer(s.Token(t, c))
		s.Do(t, "GET", "/all/x", "", token...)
		s.Do(t, "POST", tokenPath, form("GrantType", "client_credentials", "ClientId", c.ClientID, "ClientSecret", c.Secret), "Content-Type", formType)
		s.Do(t, "GET", "/all/x", "")
		s.Do(t, "GET", "/opt/x", "")
		s.Do(t, "GET", "/all/x", "", testserver.Bearer("x")...)
		s.Do(t, "GET", "/all/x", "", testserver.Bearer(secondForm(s.Token(t, c)))...)
		s.Do(t, "GET", "/all/x", "", testserver.Bearer(resigned(s.Token(t, c), joined(big.NewInt(1), big.NewInt(1))))...)
		s.Do(t, "POST", tokenPath, "grant_type=client_credentials", "Content-Type", formType, "Authorization", basic(gone.ClientID, "x"))
		s.Do(t, "POST", credentialsPath, "{}", append(token, "Content-Type", jsonType)...)
		s.Do(t, "DELETE", credentialsPath+"/"+gone.ClientID, "", token...)
	}
	round()
	s.Run(t, strings.Replace(caddyfile, "store badger", "token_lifetime 7m\nstore badger", 1))
	round()
	after := metrics(t, s)
	for counter, want := range map[string]int{
		`requests_total{reason="",result="admitted"}`:                             8, // two calls, a creation and a revocation, twice
		`signature_checks_total{result="good"}`:                                   2, // of the form that this server did not issue
		`signature_checks_total{result="wrong"}`:                                  2,
		`token_cache_lookups_total{result="hit"}`:                                 6,
		`token_cache_lookups_total{result="miss"}`:                                6,
		`tokens_total{dialect="original",reason="",result="issued"}`:              2,
		`requests_total{reason="",result="anonymous"}`:                            2,
		`requests_total{reason="no token",result="refused"}`:                      2,
		`requests_total{reason="not a compact JWS",result="refused"}`:             2,
		`tokens_total{dialect="standard",reason="",result="issued"}`:              6,
		`tokens_total{dialect="standard",reason="wrong secret",result="refused"}`: 2,
		`changes_total{action="credential.created"}`:                              2,
		`changes_total{action="credential.revoked"}`:                              1,
	} {
		if got := after[counter] - before[counter]; got != want {
			t.Errorf("%s rose by %d, want %d", counter, got, want)
		}
	}
}

func TestMetricsTellOfTimesAndOfWhatIsKept(t *testing.T) {
	s := run(t, testserver.Simple)
	started := time.Now()
	soon, later := started.AddDate(0, 0, 3), started.AddDate(0, 0, 20)
	gone := s.Create(t, issuer.Draft{Expires: soon})
	for _, expires := range []time.Time{{}, {}, soon, later, later} {
		s.Create(t, issuer.Draft{Expires: expires})
	}
	c := s.CreateWith(t)
	s.Revoke(t, gone)
	s.Do(t, "GET", "/x", "", testserver.Bearer(secondForm(s.Token(t, c)))...)
	resp, err := http.Get(fmt.Sprintf("http://%s/metrics", s.Admin))
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for line := range strings.Lines(testserver.Body(t, resp)) {
		if text, ours := strings.CutPrefix(strings.TrimSpace(line), "caddy_client_credentials_"); ours {
			at := strings.LastIndexByte(text, ' ')
			if values[text[:at]], err = strconv.ParseFloat(text[at+1:], 64); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, want := range map[string]float64{
		"credentials":                     6,
		`credentials_expiring{days="7"}`:  1,
		`credentials_expiring{days="30"}`: 3,
	} {
		if values[name] != want {
			t.Errorf("%s is %v, want %v", name, values[name], want)
		}
	}
	for _, name := range []string{
		"signature_check_duration_seconds_count",
		`store_operation_duration_seconds_count{operation="get",result="ok"}`,
		`store_operation_duration_seconds_count{operation="get",result="not found"}`,
		`store_operation_duration_seconds_count{operation="scan",result="ok"}`,
		`store_operation_duration_seconds_count{operation="commit",result="ok"}`,
	} {
		if values[name] < 1 {
			t.Errorf("%s is %v", name, values[name])
		}
	}
	if signs := time.Unix(int64(values["signing_key_start_timestamp_seconds"]), 0); signs.Unix() < 1 || signs.After(started) {
		t.Errorf("the key signs since %v, it is said", signs)
	}
}

// A failure of the store is for the operator to mend.
func TestAClientThatGoesAwayIsNoFailureOfTheServer(t *testing.T) {
	s := run(t, site("", "", "client_credentials\nreverse_proxy {{upstream}}"))
	c := s.CreateWith(t)
	token := resigned(s.Token(t, c), joined(big.NewInt(1), big.NewInt(1))) // whose signature is checked
	ctx := caddy.ActiveContext()
	endpoint, guard := new(handler.ClientCredentials), new(handler.BearerAuth)
	if err := errors.Join(endpoint.Provision(ctx), guard.Provision(ctx)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = endpoint.Cleanup() })
	before := metrics(t, s)
	gone, goAway := context.WithCancel(t.Context())
	goAway()
	for path, h := range map[string]caddyhttp.MiddlewareHandler{"/x": guard, tokenPath: endpoint} {
		r := httptest.NewRequestWithContext(gone, "POST", path, strings.NewReader(byGrant))
		r.Header.Set("Content-Type", formType)
		unknown := s.CreateWith(t) // to the memory of the server
		r.Header.Set("Authorization", basic(unknown.ClientID, unknown.Secret))
		if h == guard {
			r.Header.Set("Authorization", "Bearer "+token)
		}
		w := httptest.NewRecorder()
		err := h.ServeHTTP(w, caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, new(caddyhttp.Server)), caddyhttp.HandlerFunc(noNext))
		if refused, ok := errors.AsType[caddyhttp.HandlerError](err); ok {
			w.Code = refused.StatusCode
		}
		if w.Code != 499 {
			t.Errorf("%s: status %d, %v", path, w.Code, err)
		}
	}
	after := metrics(t, s)
	for counter, want := range map[string]int{
		`requests_total{reason="client went away",result="refused"}`:                  1,
		`tokens_total{dialect="standard",reason="client went away",result="refused"}`: 1,
		`requests_total{reason="cannot tell",result="failed"}`:                        0,
		`tokens_total{dialect="standard",reason="cannot tell",result="failed"}`:       0,
	} {
		if got := after[counter] - before[counter]; got != want {
			t.Errorf("%s rose by %d, want %d", counter, got, want)
		}
	}
	if log := s.Log(t); strings.Contains(log, `"request failed"`) {
		t.Error("the log tells of a failure")
	}
}
