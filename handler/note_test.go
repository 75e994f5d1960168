package handler_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

func TestTheAccessLogSaysWhoAndWhyNot(t *testing.T) {
	s := run(t, site("", "", "log\nclient_credentials\nbearer_auth /r/* read\nreverse_proxy {{upstream}}"))
	c := s.CreateWith(t)
	token := s.Token(t, c)
	authorized := []string{"Content-Type", formType, "Authorization", basic(c.ClientID, c.Secret)}
	wrong := []string{"Content-Type", formType, "Authorization", basic(c.ClientID, "x")}
	for path, send := range map[string]func(path string){
		"/ok":          func(path string) { s.Do(t, "GET", path, "", testserver.Bearer(token)...) },
		"/none":        func(path string) { s.Do(t, "GET", path, "") },
		"/bad":         func(path string) { s.Do(t, "GET", path, "", testserver.Bearer("x")...) },
		"/r/x":         func(path string) { s.Do(t, "GET", path, "", testserver.Bearer(token)...) },
		introspectPath: func(path string) { s.Do(t, "POST", path, "token=x", wrong...) },
		revokePath:     func(path string) { s.Do(t, "POST", path, "token=x", authorized...) },
	} {
		send(path)
	}
	s.Do(t, "POST", tokenPath+"?wrong", byGrant, wrong...)
	want := map[string][3]any{ // user_id, client_id, refusal
		"/ok":                {c.ClientID, nil, nil},
		"/none":              {"", nil, "no token"},
		"/bad":               {"", nil, "not a compact JWS"},
		"/r/x":               {c.ClientID, c.ClientID, "insufficient scope"}, // the first guard has let it pass
		tokenPath:            {c.ClientID, nil, nil},
		introspectPath:       {"", c.ClientID, "wrong secret"},
		revokePath:           {c.ClientID, nil, nil},
		tokenPath + "?wrong": {"", c.ClientID, "wrong secret"},
	}
	for _, line := range logLines(t, s) {
		if line["msg"] != "handled request" {
			continue
		}
		uri, _ := line["request"].(map[string]any)["uri"].(string)
		if got := [3]any{line["user_id"], line["client_id"], line["refusal"]}; got != want[uri] {
			t.Errorf("%s: the access log has %q, want %q", uri, got, want[uri])
		}
		delete(want, uri)
	}
	if len(want) > 0 {
		t.Errorf("the access log lacks %v", want)
	}
}

// collector is what traces are sent to, by OTLP over HTTP.
type collector struct {
	mu    sync.Mutex
	spans bytes.Buffer
}

func (c *collector) ServeHTTP(_ http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = io.Copy(&c.spans, r.Body)
}

// has reports whether all texts have come.
func (c *collector) has(texts ...string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, text := range texts {
		if !strings.Contains(c.spans.String(), text) {
			return false
		}
	}
	return true
}

func TestTracesSayWhoAndWhyNot(t *testing.T) {
	spans := new(collector)
	server := httptest.NewServer(spans)
	t.Cleanup(server.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
	s := run(t, testserver.Simple)
	admitted, issued, refused := s.CreateWith(t), s.CreateWith(t), s.CreateWith(t)
	token := s.Token(t, admitted)
	s.Run(t, site("", "", "tracing\nclient_credentials\nreverse_proxy {{upstream}}"))
	s.Token(t, issued)
	s.Do(t, "GET", "/x", "", testserver.Bearer(token)...)
	s.Do(t, "POST", tokenPath, byGrant, "Content-Type", formType, "Authorization", basic(refused.ClientID, "x"))
	s.Do(t, "GET", "/x", "", testserver.Bearer("x")...)
	want := []string{
		"client_credentials.client_id", admitted.ClientID, issued.ClientID, refused.ClientID,
		"client_credentials.refusal", "wrong secret", "not a compact JWS",
	}
	if err := caddy.Stop(); err != nil { // which sends what there is
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); !spans.has(want...); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the traces lack some of %q", want)
		}
	}
	if spans.has(token) {
		t.Error("a trace has a token")
	}
}
