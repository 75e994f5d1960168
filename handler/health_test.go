package handler_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/testpostgres"
	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

func TestTheHealthIsAskedForAndNothingElse(t *testing.T) {
	s := run(t, testserver.Simple)
	for path, want := range map[string]string{
		healthPath: `{"live":true,"ready":true}`,
		readyPath:  `{"live":true,"ready":true}`,
		livePath:   `{"live":true}`,
	} {
		resp := s.Do(t, "GET", path, "")
		wantStatus(t, resp, http.StatusOK)
		if body := testserver.Body(t, resp); body != want {
			t.Errorf("%s says %s", path, body)
		}
		for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
			resp := s.Do(t, method, path, "{}")
			wantProblem(t, resp, http.StatusMethodNotAllowed, "GET, HEAD")
			wantHeader(t, resp, "Allow", "GET, HEAD")
		}
		wantStatus(t, s.Do(t, "HEAD", path, ""), http.StatusOK)
	}
	for _, path := range []string{healthPath + "/", livePath + "/", readyPath + "/x", healthPath + "/other"} {
		wantStatus(t, s.Do(t, "GET", path, ""), http.StatusUnauthorized) // by the guard
	}
	wantNoUpstream(t, s)
}

const (
	healthPath = "/api/v0/health"
	readyPath  = "/api/v0/health/ready"
	livePath   = "/api/v0/health/live"
)

func TestANodeThatIsCutOffAnswersThatItCannotTell(t *testing.T) {
	database := testpostgres.Start(t)
	proxy := testpostgres.NewProxy(t, database)
	s := run(t, strings.Replace(site("master_key MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=", "", "client_credentials\nreverse_proxy {{upstream}}"),
		"store badger {{dir}}/store", "store postgres "+proxy.URL(database.NewDatabase(t))+" {\nlease 1s\n}", 1))
	c := s.CreateWith(t, issuer.ScopeWrite)
	token := s.Token(t, c)
	requests := map[string]func() *http.Response{
		"guard":      func() *http.Response { return s.Do(t, "GET", "/", "", "Authorization", "Bearer "+token) },
		"management": func() *http.Response { return s.Do(t, "GET", credentialsPath, "", "Authorization", "Bearer "+token) },
		"token": func() *http.Response {
			return s.Do(t, "POST", tokenPath, "grant_type=client_credentials&client_id="+c.ClientID+"&client_secret="+strings.ReplaceAll(c.Secret, "+", "%2B"), "Content-Type", formType)
		},
		"health": func() *http.Response { return s.Do(t, "GET", healthPath, "") },
		"ready":  func() *http.Response { return s.Do(t, "GET", readyPath, "") },
	}
	wantAll := func(status int) {
		t.Helper()
		for _, name := range []string{"ready", "health", "guard", "management", "token"} { // until it is ready, or stale, others may fail
			do := requests[name]
			for end := time.Now().Add(30 * time.Second); do().StatusCode != status; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("%s: not %d after 30 s", name, status)
				}
			}
			if resp := do(); status != http.StatusOK && (resp.StatusCode != status || resp.Header.Get("Retry-After") == "") {
				t.Errorf("%s: %d, retry after %q", name, resp.StatusCode, resp.Header.Get("Retry-After"))
			}
		}
		wantStatus(t, s.Do(t, "GET", livePath, ""), http.StatusOK)
	}
	wantAll(http.StatusOK)
	proxy.Cut()
	wantAll(http.StatusServiceUnavailable)
	proxy.Heal()
	wantAll(http.StatusOK)
	for line := range strings.Lines(s.Log(t)) {
		if strings.Contains(line, `"level":"error"`) && (strings.Contains(line, "cannot verify token") || strings.Contains(line, "request failed")) {
			t.Errorf("each request is an error in the log: %s", line)
		}
	}
}
