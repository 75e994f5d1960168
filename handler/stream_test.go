package handler_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/net/http2"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

func init() {
	caddy.RegisterModule(hastyHandler{})
	httpcaddyfile.RegisterHandlerDirective("hasty", func(httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		return new(hastyHandler), nil
	})
	httpcaddyfile.RegisterDirectiveOrder("hasty", httpcaddyfile.Before, "respond")
	caddy.RegisterModule(deafHandler{})
	httpcaddyfile.RegisterHandlerDirective("deaf", func(httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		return new(deafHandler), nil
	})
	httpcaddyfile.RegisterDirectiveOrder("deaf", httpcaddyfile.Before, "respond")
}

// deafHandler writes, or reads a body, for as long as it can, or sleeps for a while,
// and never asks whether it should.
type deafHandler struct{}

func (deafHandler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.deaf", New: func() caddy.Module { return new(deafHandler) }}
}

func (deafHandler) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	if r.Method == http.MethodPost {
		_, err := io.Copy(io.Discard, r.Body)
		return err
	}
	if length, err := time.ParseDuration(r.URL.Query().Get("sleep")); err == nil {
		time.Sleep(length)
		return nil
	}
	for {
		if _, err := w.Write(make([]byte, 64<<10)); err != nil {
			return err
		}
	}
}

// hastyHandler says what its answer will be, and then waits until it is ended.
type hastyHandler struct{}

func (hastyHandler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.hasty", New: func() caddy.Module { return new(hastyHandler) }}
}

func (hastyHandler) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	w.Header().Set("Content-Length", "5")
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set("Set-Cookie", "a=b")
	<-r.Context().Done()
	_, err := io.WriteString(w, "whole")
	return err
}

// newStreamUpstream starts an upstream that answers in ways that take long. Its
// ended channel tells the path of each request whose context ended.
func newStreamUpstream(t *testing.T) (address string, ended chan string) {
	t.Helper()
	ended = make(chan string, 100)
	begin := func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, "data: first\n\n")
		_ = http.NewResponseController(w).Flush()
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		begin(w)
		for r.Context().Err() == nil {
			_, _ = io.WriteString(w, "data: another\n\n")
			_ = http.NewResponseController(w).Flush()
			time.Sleep(20 * time.Millisecond)
		}
		ended <- r.URL.Path
	})
	mux.HandleFunc("/header", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		ended <- r.URL.Path
	})
	mux.HandleFunc("/silent", func(w http.ResponseWriter, r *http.Request) {
		begin(w)
		<-r.Context().Done()
		ended <- r.URL.Path
	})
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			_, _ = w.Write(make([]byte, 64<<10))
		}
		ended <- r.URL.Path
	})
	mux.HandleFunc("/late", func(w http.ResponseWriter, r *http.Request) {
		wait, _ := time.ParseDuration(r.URL.Query().Get("after"))
		select {
		case <-time.After(wait):
			_, _ = io.WriteString(w, "late, and whole")
		case <-r.Context().Done():
			ended <- r.URL.Path
		}
	})
	mux.HandleFunc("/upload", func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			ended <- r.URL.Path
		}
	})
	mux.HandleFunc("/socket", func(w http.ResponseWriter, _ *http.Request) {
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n")
		_, _ = io.Copy(conn, buffered) // echo
		ended <- "/socket"
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "here") })
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	t.Cleanup(server.CloseClientConnections) // first: the other waits for them
	return server.Listener.Addr().String(), ended
}

// streamSite proxies to an upstream that counts as down, for a long time, after
// its first fault. It is served by TLS too, since HTTP/3 needs it.
func streamSite(address, app, guard string) string {
	body := `client_credentials {
` + guard + `
}
route /deaf {
	deaf
}
reverse_proxy ` + address + ` {
	max_fails 1
	fail_duration 1h
}`
	return site("client_jwks_uri off\n"+app, "auto_https disable_redirects\nservers {\nprotocols h1 h2 h2c h3\n}", body) +
		"{{tls_url}} {\ntls {{certificate}}\n" + body + "\n}\n"
}

// allVersions runs a test over HTTP/1.1, HTTP/2 and HTTP/3.
func allVersions(t *testing.T, s *testserver.Server, test func(t *testing.T)) {
	overVersions(t, s, test, 1, 2, 3)
}

// open sends a request and returns the answer once it has begun.
func open(t *testing.T, s *testserver.Server, path, token string) *http.Response {
	t.Helper()
	resp := s.Do(t, http.MethodGet, path, "", testserver.Bearer(token)...)
	wantStatus(t, resp, http.StatusOK)
	if _, err := io.ReadFull(resp.Body, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	return resp
}

// ends reads an answer to its end, and returns when that was. An end that the
// client takes for a good one is none.
func ends(t *testing.T, body io.Reader) time.Time {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, body)
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil {
			t.Error("the answer was ended as if it were whole")
		}
	case <-time.After(10 * time.Second):
		t.Error("the stream goes on")
	}
	return time.Now()
}

// wantEnded waits until as many requests have ended at the upstream, and checks
// that it was these.
func wantEnded(t *testing.T, ended chan string, paths ...string) {
	t.Helper()
	var got []string
	for range paths {
		select {
		case path := <-ended:
			got = append(got, path)
		case <-time.After(5 * time.Second):
			t.Errorf("%q have ended at the upstream, want %q", got, paths)
			return
		}
	}
	if slices.Sort(got); !slices.Equal(got, paths) {
		t.Errorf("%q have ended at the upstream, want %q", got, paths)
	}
}

// The fault is not the upstream's: it goes on to get requests.
func wantHealthy(t *testing.T, s *testserver.Server, token string) {
	t.Helper()
	wantStatus(t, s.Do(t, http.MethodGet, "/", "", testserver.Bearer(token)...), http.StatusOK)
}

func TestStreamsEndWhenTheirTokenExpires(t *testing.T) { // J-01, J-03
	address, ended := newStreamUpstream(t)
	s := run(t, streamSite(address, "token_lifetime 3s", ""))
	c := s.CreateWith(t)
	allVersions(t, s, func(t *testing.T) {
		token := s.Token(t, c)
		expires := expiry(t, token)
		bodies := make(map[string]io.Reader)
		for _, path := range []string{"/events", "/silent", "/endless", "/deaf"} {
			bodies[path] = open(t, s, path, token).Body
		}
		for path, body := range bodies {
			if late := ends(t, body).Sub(expires); late < 0 || late > 500*time.Millisecond {
				t.Errorf("%s ended %v after its token", path, late)
			}
		}
		wantEnded(t, ended, "/endless", "/events", "/silent")
		wantHealthy(t, s, s.Token(t, c))
	})
	wantMatch(t, "the log", s.Log(t), `"msg":"request cut","reason":"expired","client_id":"`+c.ClientID)
}

func TestStreamsEndWhenTheirTokenIsRevoked(t *testing.T) { // J-02, J-03
	address, ended := newStreamUpstream(t)
	s := run(t, streamSite(address, "", ""))
	bystander := s.CreateWith(t)
	allVersions(t, s, func(t *testing.T) {
		for _, path := range []string{"/events", "/silent", "/endless", "/deaf"} {
			for what, revoke := range map[string]func(c testserver.Credential, token string){
				"credential": func(c testserver.Credential, _ string) { s.Revoke(t, c) },
				"token":      func(c testserver.Credential, token string) { revokeToken(t, s, c, token) },
			} {
				c := s.CreateWith(t)
				token := s.Token(t, c)
				resp := open(t, s, path, token)
				other := open(t, s, "/silent", s.Token(t, bystander))
				revoke(c, token)
				revoked := time.Now()
				if late := ends(t, resp.Body).Sub(revoked); late > time.Second {
					t.Errorf("%s ended %v after the %s was revoked", path, late, what)
				}
				if path != "/deaf" {
					wantEnded(t, ended, path)
				}
				select {
				case path := <-ended:
					t.Errorf("%s of another client was ended too", path)
				case <-time.After(50 * time.Millisecond):
				}
				_ = other.Body.Close()
				wantEnded(t, ended, "/silent")
			}
		}
		wantHealthy(t, s, s.Token(t, bystander))
	})
}

// The client does not read: the server is stuck in a write.
func TestADownloadThatNobodyReadsEnds(t *testing.T) {
	address, ended := newStreamUpstream(t)
	s := run(t, streamSite(address, "", ""))
	allVersions(t, s, func(t *testing.T) {
		c := s.CreateWith(t)
		_ = open(t, s, "/endless", s.Token(t, c))
		time.Sleep(200 * time.Millisecond) // until all buffers are full
		s.Revoke(t, c)
		wantEnded(t, ended, "/endless")
	})
}

// An answer that has not begun is no stream: expiry lets it finish. Revocation
// ends it, with the refusal that the next request would get.
func TestARequestThatWaitsFinishesAfterExpiryAndNotAfterRevocation(t *testing.T) { // J-04
	address, ended := newStreamUpstream(t)
	s := run(t, streamSite(address, "token_lifetime 2s", ""))
	bystander := s.CreateWith(t)
	allVersions(t, s, func(t *testing.T) {
		c := s.CreateWith(t)
		resp := s.Do(t, http.MethodGet, "/late?after=2500ms", "", testserver.Bearer(s.Token(t, c))...)
		wantStatus(t, resp, http.StatusOK)
		if body := testserver.Body(t, resp); body != "late, and whole" {
			t.Errorf("the answer is %q", body)
		}

		token := s.Token(t, c)
		time.AfterFunc(300*time.Millisecond, func() { s.Revoke(t, c) })
		resp = s.Do(t, http.MethodGet, "/late?after=5s", "", testserver.Bearer(token)...)
		wantStatus(t, resp, http.StatusUnauthorized)
		wantMatch(t, "the challenge", resp.Header.Get("WWW-Authenticate"), `error="invalid_token"`)
		wantEnded(t, ended, "/late")
		wantHealthy(t, s, s.Token(t, bystander))
	})
}

// What the handler, or one between, has already said of an answer that never began is
// not in the refusal.
func TestARefusalInPlaceOfAnAnswerIsWhole(t *testing.T) {
	address, ended := newStreamUpstream(t)
	for path, directives := range map[string]string{
		"/hasty":  "hasty",
		"/header": "encode gzip\nreverse_proxy " + address, // encode waits for the first byte
	} {
		s := run(t, site("", h2c, "route {\nclient_credentials\n"+directives+"\n}"))
		bothVersions(t, s, func(t *testing.T) {
			c := s.CreateWith(t)
			token := s.Token(t, c)
			time.AfterFunc(300*time.Millisecond, func() { s.Revoke(t, c) })
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL(path), strings.NewReader("x"))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Authorization", "Bearer "+token)
			req.Header.Set("Accept-Encoding", "gzip")
			resp, err := s.RoundTrip(t, req) // once: what is sent again, after an answer that broke off, is refused at the door
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			wantStatus(t, resp, http.StatusUnauthorized)
			wantMatch(t, "the challenge", resp.Header.Get("WWW-Authenticate"), `error="invalid_token"`)
			for _, name := range []string{"Content-Type", "Content-Encoding", "Set-Cookie"} {
				wantHeader(t, resp, name, "")
			}
			if body := testserver.Body(t, resp); body != "" || resp.ContentLength > 0 {
				t.Errorf("the answer is %q, and should have %d bytes", body, resp.ContentLength)
			}
			if path == "/header" {
				wantEnded(t, ended, path)
			}
			wantMatch(t, "the log", s.Log(t), `"msg":"request refused","reason":"revoked"`)
		})
	}
}

func TestAnUploadEndsWhenItsTokenIsRevokedAndIsNoFaultOfTheUpstream(t *testing.T) {
	address, ended := newStreamUpstream(t)
	s := run(t, streamSite(address, "", ""))
	bystander := s.CreateWith(t)
	allVersions(t, s, func(t *testing.T) {
		c := s.CreateWith(t)
		body, writer := io.Pipe()
		defer writer.Close()
		go func() {
			for {
				if _, err := writer.Write(make([]byte, 1024)); err != nil {
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
		}()
		wantUploadRefused(t, s, "/upload", c, body)
		wantEnded(t, ended, "/upload")
		wantHealthy(t, s, s.Token(t, bystander))
	})
}

// The client sends no more of its body, and the handler waits for it.
func TestAHandlerThatWaitsForABodyIsRefusedIt(t *testing.T) {
	s := run(t, streamSite("127.0.0.1:1", "", ""))
	allVersions(t, s, func(t *testing.T) {
		c := s.CreateWith(t)
		body, writer := io.Pipe()
		defer writer.Close()
		wantUploadRefused(t, s, "/deaf", c, body)
	})
}

// waitingUpstream answers / at once, and never ends what else it is asked for: it has
// begun to answer /silent, and has not /late.
type waitingUpstream struct {
	address string
	begun   chan bool
	ended   chan string // the path of each request whose context ended
}

func newWaitingUpstream(t *testing.T) *waitingUpstream {
	t.Helper()
	u := &waitingUpstream{begun: make(chan bool, 100), ended: make(chan string, 100)}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/":
			_, _ = io.WriteString(w, "here")
			return
		case "/silent":
			_, _ = io.WriteString(w, "data: first\n\n")
			_ = http.NewResponseController(w).Flush()
		}
		u.begun <- true
		<-r.Context().Done()
		u.ended <- r.URL.Path
	}))
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	t.Cleanup(server.CloseClientConnections) // first: the other waits for them
	u.address = server.Listener.Addr().String()
	return u
}

// Whether its client goes away at once or later, and while it waits or streams.
func TestTheUpstreamLearnsThatAClientWentAway(t *testing.T) {
	for _, scheme := range []string{"", "h2c://"} {
		t.Run(scheme+"upstream", func(t *testing.T) {
			upstream := newWaitingUpstream(t)
			s := run(t, streamSite(scheme+upstream.address, "", ""))
			token := s.Token(t, s.CreateWith(t))
			allVersions(t, s, func(t *testing.T) {
				for _, path := range []string{"/late", "/silent"} {
					for _, after := range []time.Duration{0, 500 * time.Millisecond} {
						goAway(t, s, upstream, path, token, after)
						wantEnded(t, upstream.ended, path)
					}
				}
				wantHealthy(t, s, token)
			})
		})
	}
}

// goAway sends a request, and is gone some time after the upstream has got it.
func goAway(t *testing.T, s *testserver.Server, upstream *waitingUpstream, path, token string, after time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	go func() {
		<-upstream.begun
		time.AfterFunc(after, cancel)
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL(path), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	if resp, err := s.RoundTrip(t, req); err == nil {
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
}

// A page for errors may come from an upstream, too. The one that was asked first is told
// of the end all the same.
func TestAProxyHandlesTheErrorOfARevokedRequest(t *testing.T) {
	for _, scheme := range []string{"", "h2c://"} {
		t.Run(scheme+"upstream", func(t *testing.T) {
			upstream := newWaitingUpstream(t)
			s := run(t, site("", "", `client_credentials
reverse_proxy `+scheme+upstream.address+`
handle_errors {
	rewrite * /
	reverse_proxy `+scheme+upstream.address+`
}`))
			for range 20 {
				c := s.CreateWith(t)
				token := s.Token(t, c)
				go func() {
					<-upstream.begun
					s.Revoke(t, c)
				}()
				if body := testserver.Body(t, s.Do(t, http.MethodGet, "/late", "", testserver.Bearer(token)...)); body != "here" {
					t.Errorf("the answer is %q", body)
				}
				wantEnded(t, upstream.ended, "/late")
			}
		})
	}
}

// A load balancer keeps its connections, and sends the requests of many clients over
// each: one that was ended must not end those that follow.
func TestARevokedRequestLeavesItsConnectionToOthers(t *testing.T) {
	address, _ := newStreamUpstream(t)
	s := run(t, streamSite(address, "", ""))
	connections := &http.Transport{MaxConnsPerHost: 1}
	defer connections.CloseIdleConnections()
	call := func(path, token string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL(path), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := connections.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		testserver.Body(t, resp)
		return resp.StatusCode
	}
	gone, good := s.CreateWith(t), s.Token(t, s.CreateWith(t))
	token := s.Token(t, gone)
	time.AfterFunc(100*time.Millisecond, func() { s.Revoke(t, gone) })
	if got := call("/deaf?sleep=1s", token); got != http.StatusUnauthorized {
		t.Errorf("a request that is revoked while it waits: %d", got)
	}
	for range 3 {
		if got := call("/late?after=1ms", good); got != http.StatusOK {
			t.Errorf("the next one over its connection: %d", got)
		}
	}
}

// wantUploadRefused sends a body that does not end, and revokes the credential
// in the meantime.
func wantUploadRefused(t *testing.T, s *testserver.Server, path string, c testserver.Credential, body io.Reader) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL(path), body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.Token(t, c))
	time.AfterFunc(300*time.Millisecond, func() { s.Revoke(t, c) })
	wantStatus(t, s.Send(t, req), http.StatusUnauthorized)
}

func TestAWebSocketEndsWithItsToken(t *testing.T) {
	address, ended := newStreamUpstream(t)
	s := run(t, streamSite(address, "token_lifetime 3s", ""))
	wantSocketsEnded(t, s, ended, s.CreateWith(t))
	wantHealthy(t, s, s.Token(t, s.CreateWith(t)))
}

// The CONNECT of RFC 8441 and RFC 9220, which reverse_proxy makes an upgrade of.
// Over HTTP/2, a Caddy takes it only where its environment says so.
func TestAWebSocketByExtendedCONNECTEndsWithItsToken(t *testing.T) {
	t.Setenv("GODEBUG", "http2xconnect=1")
	address, ended := newStreamUpstream(t)
	s := newServer(t)
	s.Start(t, streamSite(address, "token_lifetime 3s", ""))
	out, err := s.Command("client-credentials", "create", "--json", "--address", s.Admin).Output()
	var c testserver.Credential
	if err := errors.Join(err, json.Unmarshal(out, &c)); err != nil {
		t.Fatal(err)
	}
	overVersions(t, s, func(t *testing.T) {
		wantSocketsEnded(t, s, ended, c)
		wantHealthy(t, s, s.Token(t, c))
	}, 2, 3)
}

func wantSocketsEnded(t *testing.T, s *testserver.Server, ended chan string, c testserver.Credential) {
	t.Helper()
	for what, end := range map[string]func(token string) time.Time{
		"expiry": func(token string) time.Time { return expiry(t, token) },
		"revocation": func(token string) time.Time {
			revokeToken(t, s, c, token)
			return time.Now()
		},
	} {
		token := s.Token(t, c)
		conn := openSocket(t, s, token)
		at := end(token)
		_, err := io.Copy(io.Discard, conn)
		if late := time.Since(at); late < -100*time.Millisecond || late > time.Second {
			t.Errorf("the socket ended %v after its token's %s: %v", late, what, err)
		}
		if s.HTTP > 1 && err == nil {
			t.Errorf("after its token's %s, the socket was ended as if it were whole", what)
		}
		wantEnded(t, ended, "/socket")
	}
}

// openSocket opens a WebSocket and has it echo once.
func openSocket(t *testing.T, s *testserver.Server, token string) io.Reader {
	t.Helper()
	open := upgrade
	if s.HTTP > 1 {
		open = connect
	}
	receive, send := open(t, s, token)
	_, _ = io.WriteString(send, "echo\n")
	reader := bufio.NewReader(receive)
	if line, err := reader.ReadString('\n'); line != "echo\n" {
		t.Fatalf("the socket answers %q, %v", line, err)
	}
	return reader
}

// upgrade opens a WebSocket over HTTP/1.1.
func upgrade(t *testing.T, s *testserver.Server, token string) (io.Reader, io.Writer) {
	t.Helper()
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.Port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	_, _ = io.WriteString(conn, crlf("GET /socket HTTP/1.1\nHost: localhost\nConnection: Upgrade\nUpgrade: websocket\n"+
		"Sec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\nAuthorization: Bearer "+token+"\n\n"))
	reader := bufio.NewReader(conn)
	resp, err := http.ReadResponse(reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantStatus(t, resp, http.StatusSwitchingProtocols)
	return reader, conn
}

// connect opens a WebSocket over HTTP/2 or HTTP/3.
func connect(t *testing.T, s *testserver.Server, token string) (io.Reader, io.Writer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	body, send := io.Pipe()
	context.AfterFunc(ctx, func() { _ = send.CloseWithError(ctx.Err()) })
	req, err := http.NewRequestWithContext(ctx, http.MethodConnect, "https://localhost:"+fmt.Sprint(s.TLSPort)+"/socket", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Sec-WebSocket-Version", "13")
	config := &tls.Config{InsecureSkipVerify: true}
	var resp *http.Response
	if s.HTTP == 2 {
		req.Header[":protocol"] = []string{"websocket"}
		resp, err = (&http2.Transport{TLSClientConfig: config}).RoundTrip(req) //nolint:staticcheck // SA1019: net/http's lets no :protocol pass
	} else {
		req.Proto = "websocket"
		resp, err = (&http3.Transport{TLSClientConfig: config}).RoundTrip(req)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	wantStatus(t, resp, http.StatusOK)
	return resp.Body, send
}

func TestStreamsAreKeptWhereTheyShallBe(t *testing.T) {
	address, _ := newStreamUpstream(t)
	s := run(t, streamSite(address, "token_lifetime 2s", "keep_streams"))
	allVersions(t, s, func(t *testing.T) {
		c := s.CreateWith(t)
		token := s.Token(t, c)
		resp := open(t, s, "/events", token)
		s.Revoke(t, c)
		stop := time.After(time.Until(expiry(t, token)) + time.Second)
		lines := bufio.NewReader(resp.Body)
		for reading := true; reading; {
			select {
			case <-stop:
				reading = false
			default:
				if _, err := lines.ReadString('\n'); err != nil {
					t.Fatalf("the stream was cut: %v", err)
				}
			}
		}
	})
}

// J-06
func TestStreamsStayOverAReloadAndEndWithTheirToken(t *testing.T) {
	address, ended := newStreamUpstream(t)
	config := streamSite(address, "", "")
	s := run(t, config)
	allVersions(t, s, func(t *testing.T) {
		c := s.CreateWith(t)
		resp := open(t, s, "/events", s.Token(t, c))
		if err := s.Load(strings.Replace(config, "max_fails 1", fmt.Sprint("max_fails 1", s.HTTP), 1)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(resp.Body, make([]byte, 100)); err != nil {
			t.Fatalf("the reload ended the stream: %v", err)
		}
		s.Revoke(t, c)
		ends(t, resp.Body)
		wantEnded(t, ended, "/events")
	})
}

// Two guards in one request's way watch it once, and what the first one's
// matcher leaves out the second one watches.
func TestTwoGuardsCutAStreamOnce(t *testing.T) {
	address, ended := newStreamUpstream(t)
	s := run(t, site("", h2c, "client_credentials\nbearer_auth\nreverse_proxy "+address))
	c := s.CreateWith(t)
	before := metrics(t, s)
	resp := open(t, s, "/silent", s.Token(t, c))
	s.Revoke(t, c)
	ends(t, resp.Body)
	wantEnded(t, ended, "/silent")
	time.Sleep(100 * time.Millisecond) // it is logged when the handler has returned
	if n := strings.Count(s.Log(t), `"msg":"request cut"`); n != 1 {
		t.Errorf("the cut is logged %d times", n)
	}
	const counter = `requests_cut_total{reason="revoked"}`
	if n := metrics(t, s)[counter] - before[counter]; n != 1 {
		t.Errorf("the cut is counted %d times", n)
	}
}

func revokeToken(t *testing.T, s *testserver.Server, c testserver.Credential, token string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	body := form("token", token, "client_id", c.ClientID, "client_secret", c.Secret)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL("/api/v0/oauth/revoke"), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", formType)
	wantStatus(t, s.Send(t, req), http.StatusOK)
}

// expiry returns when a token expires, as it says itself.
func expiry(t *testing.T, token string) time.Time {
	t.Helper()
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims struct{ Exp int64 }
	if err := json.Unmarshal(payload, &claims); err != nil {
		t.Fatal(err)
	}
	return time.Unix(claims.Exp, 0)
}
