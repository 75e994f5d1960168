// Package examples_test runs every example as it stands, but for its ports and
// the directories that it keeps its data in.
package examples_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/clientcredentials/caddy-client-credentials/internal/freeport"
	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

// walks has one entry for each example.
var walks = map[string]func(*testing.T, *example){
	"cors":           walkCORS,
	"monitoring":     walkMonitoring,
	"one-site":       walkOneSite,
	"quickstart":     walkQuickstart,
	"separate-sites": walkSeparateSites,
}

func TestExamples(t *testing.T) {
	for name, walk := range walks {
		t.Run(name, func(t *testing.T) {
			walk(t, run(t, name))
		})
	}
}

func TestEveryExampleIsRun(t *testing.T) {
	found, err := filepath.Glob("*/Caddyfile")
	if err != nil || len(found) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, path := range found {
		if name := filepath.Dir(path); walks[name] == nil {
			t.Errorf("no test runs the example %s", name)
		}
	}
}

// What the examples' own comments say of how to run them.
func TestExampleNamesItsCommand(t *testing.T) {
	for name := range walks {
		if name == "quickstart" {
			continue
		}
		if command := "caddy run --config examples/" + name + "/Caddyfile\n"; !strings.Contains(read(t, name+"/Caddyfile"), command) {
			t.Errorf("the Caddyfile of %s does not say %q", name, command)
		}
	}
}

func walkOneSite(t *testing.T, e *example) {
	walkOne(t, e.site(t, "8090"))
}

func walkQuickstart(t *testing.T, e *example) {
	walkOne(t, e.site(t, "8080"))
}

// walkOne is the way of a credential on a site that issues and guards.
func walkOne(t *testing.T, s *testserver.Server) {
	client, manager := s.CreateWith(t, "hello:read"), s.CreateWith(t, "client-credentials:write")
	token, management := testserver.Bearer(s.Token(t, client)), testserver.Bearer(s.Token(t, manager))
	one := "/api/v0/client-credentials/" + client.ClientID

	expect(t, s.Do(t, "GET", "/hello", ""), http.StatusUnauthorized)
	expect(t, s.Do(t, "GET", "/hello", "", testserver.Bearer("e30.e30.e30")...), http.StatusUnauthorized)
	resp := s.Do(t, "GET", "/hello", "", token...)
	expect(t, resp, http.StatusOK)
	if body, want := testserver.Body(t, resp), "Hello, "+client.ClientID+"!\n"; body != want {
		t.Errorf("the upstream said %q instead of %q", body, want)
	}
	expect(t, s.Do(t, "GET", "/api/v0/client-credentials", "", token...), http.StatusForbidden)
	expect(t, s.Do(t, "DELETE", one, "", token...), http.StatusForbidden)
	expect(t, s.Do(t, "GET", "/api/v0/client-credentials", "", management...), http.StatusOK)
	expect(t, s.Do(t, "DELETE", one, "", management...), http.StatusNoContent)
	expect(t, s.Do(t, "GET", "/hello", "", token...), http.StatusUnauthorized)
}

func walkSeparateSites(t *testing.T, e *example) {
	auth, stock, orders := e.site(t, "8180"), e.site(t, "8181"), e.site(t, "8182")
	client, manager := auth.CreateWith(t, "stock:read", "orders:read"), auth.CreateWith(t, "client-credentials:write", "orders:read", "orders:report")
	token, all := testserver.Bearer(auth.Token(t, client)), testserver.Bearer(auth.Token(t, manager))

	expect(t, auth.Do(t, "GET", "/", ""), http.StatusUnauthorized)
	expect(t, auth.Do(t, "GET", "/", "", token...), http.StatusNotFound)

	expect(t, stock.Do(t, "GET", "/items", ""), http.StatusUnauthorized)
	expect(t, stock.Do(t, "GET", "/items", "", token...), http.StatusOK)
	resp := stock.Do(t, "POST", "/items", "{}", token...)
	expect(t, resp, http.StatusForbidden)
	if challenge := resp.Header.Get("WWW-Authenticate"); !strings.Contains(challenge, `realm="stock"`) || !strings.Contains(challenge, `scope="stock:write"`) {
		t.Errorf("the challenge is %s", challenge)
	}
	expect(t, stock.Do(t, "GET", "/items", "", all...), http.StatusForbidden)

	resp = orders.Do(t, "GET", "/", "", "X-Client-Id", "somebody")
	expect(t, resp, http.StatusOK)
	if body := testserver.Body(t, resp); !strings.HasPrefix(body, "client  of account  with") {
		t.Errorf("the upstream saw an identity without a token: %q", body)
	}
	resp = orders.Do(t, "GET", "/", "", token...)
	expect(t, resp, http.StatusOK)
	if body := testserver.Body(t, resp); !strings.HasPrefix(body, "client "+client.ClientID) {
		t.Errorf("the upstream saw no identity: %q", body)
	}
	expect(t, orders.Do(t, "GET", "/", "", testserver.Bearer("e30.e30.e30")...), http.StatusUnauthorized)
	expect(t, orders.Do(t, "GET", "/reports/1", ""), http.StatusUnauthorized)
	expect(t, orders.Do(t, "GET", "/reports/1", "", token...), http.StatusForbidden)
	expect(t, orders.Do(t, "GET", "/reports/1", "", all...), http.StatusOK)

	expect(t, auth.Do(t, "DELETE", "/api/v0/client-credentials/"+client.ClientID, "", all...), http.StatusNoContent)
	expect(t, stock.Do(t, "GET", "/items", "", token...), http.StatusUnauthorized)
	expect(t, orders.Do(t, "GET", "/", "", token...), http.StatusUnauthorized)
}

func walkCORS(t *testing.T, e *example) {
	s := e.site(t, "8280")
	token := testserver.Bearer(s.Token(t, s.CreateWith(t)))
	origin := []string{"Origin", "https://app.example.com"}
	preflight := append(slices.Clone(origin), "Access-Control-Request-Method", "GET", "Access-Control-Request-Headers", "authorization")

	for _, path := range []string{"/api/hello", "/api/v0/oauth/token", "/api/v0/client-credentials"} {
		resp := s.Do(t, "OPTIONS", path, "", preflight...)
		expect(t, resp, http.StatusNoContent)
		for name, want := range map[string]string{
			"Access-Control-Allow-Origin":  "https://app.example.com",
			"Access-Control-Allow-Headers": "Authorization, Content-Type",
		} {
			if got := resp.Header.Values(name); len(got) != 1 || got[0] != want {
				t.Errorf("preflight of %s: %s is %q", path, name, got)
			}
		}
	}
	// Neither another method nor an OPTIONS that is no preflight gets past.
	expect(t, s.Do(t, "OPTIONS", "/api/hello", "", origin...), http.StatusUnauthorized)
	expect(t, s.Do(t, "OPTIONS", "/api/hello", "", preflight[2:]...), http.StatusUnauthorized)
	expect(t, s.Do(t, "GET", "/api/hello", "", preflight...), http.StatusUnauthorized)

	resp := s.Do(t, "GET", "/api/hello", "", origin...)
	expect(t, resp, http.StatusUnauthorized)
	if resp.Header.Get("Access-Control-Allow-Origin") == "" {
		t.Error("the page can't read the refusal")
	}
	expect(t, s.Do(t, "GET", "/api/hello", "", append(token, origin...)...), http.StatusOK)
	expect(t, s.Do(t, "GET", "/", ""), http.StatusOK)
}

func walkMonitoring(t *testing.T, e *example) {
	s := e.site(t, "8390")
	manager := s.CreateWith(t, "client-credentials:write")
	resp := s.Do(t, "POST", "/api/v0/client-credentials", "{}",
		append(testserver.Bearer(s.Token(t, manager)), "Content-Type", "application/json")...)
	expect(t, resp, http.StatusCreated)
	var made struct{ ClientID string }
	if err := json.Unmarshal([]byte(testserver.Body(t, resp)), &made); err != nil {
		t.Fatal(err)
	}
	audit := read(t, filepath.Join(e.dir, "audit.log"))
	if !strings.Contains(audit, `"action":"credential.created","client_id":"`+made.ClientID) || strings.Contains(audit, `"http.`) {
		t.Errorf("the audit log has %s", audit)
	}
	if log := read(t, filepath.Join(e.dir, "default.log")); strings.Contains(log, "client_credentials.audit") {
		t.Errorf("the other log has changes too: %s", log)
	}
	expect(t, s.Do(t, "GET", "/", ""), http.StatusUnauthorized) // metrics of what never happened are not shown
	checkDashboard(t, testserver.Body(t, e.site(t, "8392").Do(t, "GET", "/", "")))
}

var metricName = regexp.MustCompile(`caddy_client_credentials_\w+`)

// shownElsewhere are metrics that this example does not show, as they are of what
// has not happened, or of another store. Tests of their packages see them.
var shownElsewhere = []string{
	"caddy_client_credentials_requests_cut_total",
	"caddy_client_credentials_introspections_total",
	"caddy_client_credentials_store_stale",
	"caddy_client_credentials_store_lag_seconds",
	"caddy_client_credentials_store_connections",
}

// histogram is what Prometheus asks for of one.
var histogram = regexp.MustCompile(`_(bucket|count|sum)$`)

// checkDashboard checks that what the dashboard asks for is among the metrics, that
// the README has all of those, and that each one of the README is in a panel.
func checkDashboard(t *testing.T, metrics string) {
	t.Helper()
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, "monitoring/grafana.json")), &dashboard); err != nil {
		t.Fatal(err)
	}
	there, shown := make(map[string]bool), make(map[string]bool)
	for _, name := range append(metricName.FindAllString(metrics, -1), shownElsewhere...) {
		there[name] = true
	}
	for _, panel := range dashboard.Panels {
		for _, target := range panel.Targets {
			names := metricName.FindAllString(target.Expr, -1)
			if len(names) == 0 {
				t.Errorf("%q asks for none of the metrics: %s", panel.Title, target.Expr)
			}
			for _, name := range names {
				shown[histogram.ReplaceAllString(name, "")] = true
				if !there[name] {
					t.Errorf("%q asks for %s, which there is not", panel.Title, name)
				}
			}
		}
	}
	readme := read(t, "../README.md")
	for _, found := range regexp.MustCompile(`(?m)^# TYPE (caddy_client_credentials_\w+)`).FindAllStringSubmatch(metrics, -1) {
		if !strings.Contains(readme, "`"+found[1]+"`") {
			t.Errorf("the README does not know %s", found[1])
		}
	}
	for _, found := range regexp.MustCompile("(?m)^\\| `(caddy_client_credentials_\\w+)` \\|").FindAllStringSubmatch(readme, -1) {
		if !shown[found[1]] {
			t.Errorf("no panel of the dashboard shows %s", found[1])
		}
	}
}

// example is an example that runs.
type example struct {
	dir   string         // where its data and its logs are
	ports map[string]int // by the port that the Caddyfile names
}

var localPort = regexp.MustCompile(`(localhost:)([0-9]+)`)

// run loads the Caddyfile of an example into this process.
func run(t *testing.T, name string) *example {
	t.Helper()
	e := &example{dir: t.TempDir(), ports: make(map[string]int)}
	text := localPort.ReplaceAllStringFunc(read(t, name+"/Caddyfile"), func(found string) string {
		port := localPort.FindStringSubmatch(found)[2]
		if e.ports[port] == 0 {
			e.ports[port] = freeport.For(t)
		}
		return fmt.Sprint("localhost:", e.ports[port])
	})
	if err := caddy.Load(private(t, adapt(t, text), e.dir), true); err != nil {
		t.Fatalf("loading the example: %v", err)
	}
	t.Cleanup(func() { _ = caddy.Stop() })
	return e
}

// site returns the site at a port of the Caddyfile.
func (e *example) site(t *testing.T, port string) *testserver.Server {
	t.Helper()
	if e.ports[port] == 0 {
		t.Fatalf("the example has no localhost:%s", port)
	}
	return &testserver.Server{Port: e.ports[port]}
}

// adapt returns a Caddyfile as JSON. What Caddy warns of, such as formatting, is
// an error here.
func adapt(t *testing.T, caddyfile string) []byte {
	t.Helper()
	config, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		t.Fatalf("adapting: %v\n%s", err, caddyfile)
	}
	for _, warning := range warnings {
		t.Errorf("adapting: %s\n%s", warning, caddyfile)
	}
	return config
}

// private returns a configuration that keeps its data and its logs in the
// directory, and to itself.
func private(t *testing.T, config []byte, dir string) []byte {
	t.Helper()
	var whole map[string]any
	if err := json.Unmarshal(config, &whole); err != nil {
		t.Fatal(err)
	}
	whole["admin"] = map[string]any{"disabled": true, "config": map[string]any{"persist": false}}
	whole["storage"] = map[string]any{"module": "file_system", "root": filepath.Join(dir, "storage")}
	logging, _ := whole["logging"].(map[string]any)
	logs, _ := logging["logs"].(map[string]any)
	if logs == nil {
		logs = map[string]any{"default": map[string]any{}}
		whole["logging"] = map[string]any{"logs": logs}
	}
	for name, log := range logs {
		log.(map[string]any)["writer"] = map[string]any{"output": "file", "filename": filepath.Join(dir, name+".log")}
	}
	app := whole["apps"].(map[string]any)["client_credentials"].(map[string]any)
	app["store"] = map[string]any{"module": "badger", "path": filepath.Join(dir, "store")}
	changed, err := json.Marshal(whole)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func expect(t *testing.T, resp *http.Response, status int) {
	t.Helper()
	if resp.StatusCode != status {
		t.Errorf("%s %s: %s instead of %d", resp.Request.Method, resp.Request.URL.Path, resp.Status, status)
	}
	if status == http.StatusUnauthorized && resp.Header.Get("WWW-Authenticate") == "" {
		t.Errorf("%s %s: 401 without a challenge", resp.Request.Method, resp.Request.URL.Path)
	}
}
