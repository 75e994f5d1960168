package handler_test

import (
	"bufio"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

func TestAGuardThatOnlyReportsRefusesNothingAndSaysWhatItWould(t *testing.T) {
	s := run(t, site("", "", "client_credentials /api/v0/*\nbearer_auth /trial/* read {\nreport_only\n}\nbearer_auth /open/* {\noptional\nreport_only\n}\nreverse_proxy {{upstream}}"))
	manager := s.CreateWith(t, issuer.ScopeWrite, "read")
	good, gone, lacking := s.CreateWith(t, "read"), s.CreateWith(t, "read"), s.CreateWith(t)
	goneToken := s.Token(t, gone)
	wantStatus(t, s.Do(t, "DELETE", credentialsPath+"/"+gone.ClientID, "", testserver.Bearer(s.Token(t, manager))...), http.StatusNoContent)
	for _, test := range []struct{ path, authorization, counter string }{
		{"/trial/x", "", `requests_total{reason="no token",result="reported"}`},
		{"/trial/x", "Bearer garbage", `requests_total{reason="not a compact JWS",result="reported"}`},
		{"/trial/x", "Bearer " + goneToken, `requests_total{reason="revoked",result="reported"}`},
		{"/trial/x", "Bearer " + s.Token(t, lacking), `requests_total{reason="insufficient scope",result="reported"}`},
		{"/trial/x", "Bearer " + s.Token(t, good), `requests_total{reason="",result="admitted"}`},
		{"/trial/x", "Basic YWxpY2U6c2VjcmV0", `requests_total{reason="no token",result="reported"}`},
		{"/open/x", "", `requests_total{reason="",result="anonymous"}`},
	} {
		before := metrics(t, s)
		s.Upstream.Take()
		header := []string{"X-Client-Id", "made up"}
		if test.authorization != "" {
			header = append(header, "Authorization", test.authorization)
		}
		resp := s.Do(t, "GET", test.path, "", header...)
		wantStatus(t, resp, http.StatusOK)
		wantHeader(t, resp, "WWW-Authenticate", "")
		got := wantUpstream(t, s)
		if got.Header.Get("Authorization") != test.authorization || got.Header.Get("X-Client-Id") != "" {
			t.Errorf("%s with %q: the upstream sees %q", test.path, test.authorization, got.Header)
		}
		for name, value := range metrics(t, s) {
			rise := value - before[name]
			if strings.HasPrefix(name, "requests_total") && (rise == 1) != (name == test.counter) {
				t.Errorf("%s with %.20q: %s rises by %d", test.path, test.authorization, name, rise)
			}
		}
	}
	if n := strings.Count(s.Log(t), `"msg":"request would be refused"`); n != 5 {
		t.Errorf("%d requests are logged that would be refused, want 5", n)
	}
}

func TestAGuardThatOnlyReportsEndsNoStream(t *testing.T) {
	address, _ := newStreamUpstream(t)
	s := run(t, site("", "", "client_credentials /api/v0/*\nbearer_auth {\nreport_only\n}\nreverse_proxy "+address))
	c := s.CreateWith(t)
	resp := open(t, s, "/events", s.Token(t, c))
	s.Revoke(t, c)
	lines := bufio.NewReader(resp.Body)
	for stop := time.Now().Add(1500 * time.Millisecond); time.Now().Before(stop); { // a revocation cuts within a second
		if _, err := lines.ReadString('\n'); err != nil {
			t.Fatalf("the stream was cut: %v", err)
		}
	}
}
