// Package testserver runs real Caddy servers for tests: in the process of the
// test, or as a process of their own that a test can kill.
package testserver

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/caddyconfig/caddyfile" // the adapter
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	"github.com/quic-go/quic-go/http3"

	_ "github.com/clientcredentials/caddy-client-credentials"
	"github.com/clientcredentials/caddy-client-credentials/internal/freeport"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

const (
	// childEnv makes a test binary run as caddy.
	childEnv = "TESTSERVER_RUN_AS_CADDY"
	// clockEnv is by how many seconds its clock is ahead.
	clockEnv = "TESTSERVER_CLOCK_AHEAD"
)

// Main runs the tests, or, in a process that Command has started, caddy. Every
// TestMain of a package that uses Command calls it. What is given as after says
// what is wrong when all tests have passed.
func Main(m *testing.M, after ...func() error) {
	if os.Getenv(childEnv) != "" {
		if ahead := os.Getenv(clockEnv); ahead != "" {
			if err := setClock(ahead); err != nil {
				panic(err)
			}
		}
		caddycmd.Main()
		return
	}
	// The race detector has every process that succeeds sleep for a second.
	_ = os.Setenv("GORACE", os.Getenv("GORACE")+" atexit_sleep_ms=0")
	code := m.Run()
	for _, check := range after {
		if code != 0 {
			break
		}
		if err := check(); err != nil {
			fmt.Fprintln(os.Stderr, "FAIL:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// Server is where a test finds the servers of a configuration.
type Server struct {
	// Dir is the test's own directory; the store is Dir/store, Caddy's storage
	// Dir/storage, and the log Dir/log.
	Dir string
	// Port is the port of the site on localhost, and Admin the address of the
	// admin endpoint.
	Port  int
	Admin string
	// TLSPort is the port of the site where it is served by TLS too.
	TLSPort int
	// Upstream is what the site proxies to.
	Upstream *Upstream
	// Host is the host that Do asks for; localhost where it is empty.
	Host string
	// HTTP is the major version that Do speaks, HTTP/1.1 where it is 0: 2 is
	// without TLS, and 3 goes to TLSPort.
	HTTP int
	// Check, where it is not nil, sees every response. If it reads the body, it
	// leaves another in its place.
	Check func(t testing.TB, resp *http.Response)

	loaded time.Time
	ahead  int // its own processes' clock, in seconds

	certificate string // what the directive tls takes
}

// New prepares a server, of which nothing runs yet.
func New(t testing.TB) *Server {
	t.Helper()
	return &Server{
		Dir:      t.TempDir(),
		Port:     freeport.For(t),
		TLSPort:  freeport.For(t),
		Admin:    fmt.Sprintf("127.0.0.1:%d", freeport.For(t)),
		Upstream: newUpstream(t),

		certificate: writeCertificate(t),
	}
}

// Expand writes the server's own values into a Caddyfile: {{dir}}, {{port}},
// {{url}}, {{tls_url}}, {{certificate}} for the directive tls, {{upstream}}, and
// {{global}} for the global options that keep a test to itself. A global options block must begin with {{global}}.
func (s *Server) Expand(caddyfile string) string {
	global := strings.Join([]string{
		"admin " + s.Admin,
		"persist_config off",
		"skip_install_trust",
		"default_bind 127.0.0.1",
		"grace_period 1s",
		"storage file_system " + filepath.Join(s.Dir, "storage"),
		"log {", "\toutput file " + filepath.Join(s.Dir, "log"), "\tlevel DEBUG", "}",
	}, "\n\t")
	return strings.NewReplacer(
		"{{global}}", global,
		"{{dir}}", s.Dir,
		"{{port}}", fmt.Sprint(s.Port),
		"{{url}}", s.URL(""),
		"{{tls_url}}", "https://"+s.tlsHost(),
		"{{certificate}}", s.certificate,
		"{{upstream}}", s.Upstream.Address(),
	).Replace(caddyfile)
}

// Simple is a site with the endpoints, the guard and an upstream.
const Simple = `{
	{{global}}
	client_credentials {
		issuer {{url}}
		store badger {{dir}}/store
	}
}
{{url}} {
	client_credentials
	reverse_proxy {{upstream}}
}
`

// Run loads a Caddyfile into this process, and ends it with the test. One
// process runs one configuration: a second call is a reload.
func (s *Server) Run(t testing.TB, caddyfile string) {
	t.Helper()
	if err := s.Load(caddyfile); err != nil {
		t.Fatalf("loading the Caddyfile: %v", err)
	}
	t.Cleanup(func() { _ = caddy.Stop() })
}

// Load loads a Caddyfile into this process.
func (s *Server) Load(caddyfile string) error {
	config, err := s.Adapt(caddyfile)
	if err != nil {
		return err
	}
	reload := !s.loaded.IsZero()
	err = caddy.Load(config, true)
	if reload {
		// Caddy only begins to stop the servers of the earlier configuration: for
		// a moment, their listeners take some of the connections.
		time.Sleep(250 * time.Millisecond)
	}
	s.loaded = time.Now()
	return err
}

// RunJSON loads a JSON configuration into this process, and ends it with the
// test.
func (s *Server) RunJSON(t testing.TB, config string) {
	t.Helper()
	if err := caddy.Load([]byte(config), true); err != nil {
		t.Fatalf("loading the configuration: %v", err)
	}
	t.Cleanup(func() { _ = caddy.Stop() })
}

// Adapt returns the Caddyfile as JSON.
func (s *Server) Adapt(caddyfile string) ([]byte, error) {
	config, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(s.Expand(caddyfile)), map[string]any{"filename": "Caddyfile"})
	return config, err
}

// WriteCaddyfile writes the Caddyfile into the server's directory and returns
// its path.
func (s *Server) WriteCaddyfile(t testing.TB, caddyfile string) string {
	t.Helper()
	path := filepath.Join(s.Dir, "Caddyfile")
	if err := os.WriteFile(path, []byte(s.Expand(caddyfile)), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Command returns a caddy command that runs in a process of its own.
func (s *Server) Command(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), childEnv+"=1", "XDG_DATA_HOME="+s.Dir, "XDG_CONFIG_HOME="+s.Dir)
	if s.ahead != 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%d", clockEnv, s.ahead))
	}
	cmd.Dir = s.Dir
	return cmd
}

// Start runs the Caddyfile in a process of its own and waits until the site
// answers. The process is killed when the test ends. What is given as under is
// a command that runs another, such as strace, with its options.
func (s *Server) Start(t testing.TB, caddyfile string, under ...string) *exec.Cmd {
	t.Helper()
	cmd := s.Command("run", "--config", s.WriteCaddyfile(t, caddyfile))
	if len(under) > 0 {
		path, err := exec.LookPath(under[0])
		if err != nil {
			t.Fatal(err)
		}
		cmd.Path, cmd.Args = path, append(under, cmd.Args...)
	}
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	served := s.served()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	if !s.answers(served) {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // before this its output is still being written
		t.Fatalf("the server does not answer: %s", output.String())
	}
	return cmd
}

// answers waits until the site answers, and the admin endpoint knows of it, and
// reports whether they do. Servers were started so many times before.
func (s *Server) answers(served int) bool {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if s.served() == served {
			continue
		}
		resp, err := http.Get(s.URL("/"))
		if err == nil {
			_ = resp.Body.Close()
			return true
		}
	}
	return false
}

// served counts the servers of their own process that have started.
func (s *Server) served() int {
	log, _ := os.ReadFile(filepath.Join(s.Dir, "log")) // not there before the first one
	return bytes.Count(log, []byte("serving initial configuration"))
}

// URL returns the URL of a path of the site.
func (s *Server) URL(path string) string { return fmt.Sprintf("http://localhost:%d%s", s.Port, path) }

// Log returns all that was logged.
func (s *Server) Log(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.Dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Credential is a client id and its secret.
type Credential struct{ ClientID, Secret string }

// Create creates a credential of the configuration that runs in this process.
func (s *Server) Create(t testing.TB, draft issuer.Draft) Credential {
	t.Helper()
	c, secret, err := running(t).Create(t.Context(), draft)
	if err != nil {
		t.Fatal(err)
	}
	return Credential{c.ClientID, secret}
}

// Revoke revokes a credential.
func (s *Server) Revoke(t testing.TB, c Credential) {
	t.Helper()
	if err := running(t).Revoke(t.Context(), "", c.ClientID); err != nil {
		t.Error(err)
	}
}

func running(t testing.TB) *issuer.Issuer {
	t.Helper()
	app, err := caddy.ActiveContext().AppIfConfigured("client_credentials")
	if err != nil {
		t.Fatal(err)
	}
	iss, err := app.(*issuer.App).Open()
	if err != nil {
		t.Fatal(err)
	}
	return iss
}

// CreateWith creates a credential with scopes.
func (s *Server) CreateWith(t testing.TB, scopes ...string) Credential {
	t.Helper()
	return s.Create(t, issuer.Draft{Scopes: scopes})
}

// Token obtains a token for the credential, with further parameters.
func (s *Server) Token(t testing.TB, c Credential, params ...string) string {
	t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {c.ClientID}, "client_secret": {c.Secret}}
	for i := 0; i+1 < len(params); i += 2 {
		form.Add(params[i], params[i+1])
	}
	resp := s.Do(t, "POST", "/api/v0/oauth/token", form.Encode(), "Content-Type", "application/x-www-form-urlencoded")
	body := Body(t, resp)
	var answer struct {
		Token string `json:"access_token"`
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("token request: %d %s", resp.StatusCode, body)
	}
	return answer.Token
}

// Do sends a request. Header fields are given as name, value, name, value …;
// a body makes up the rest.
func (s *Server) Do(t testing.TB, method, path, body string, header ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL(path), strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if s.Host != "" {
		req.Host = fmt.Sprintf("%s:%d", s.Host, s.Port)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header[http.CanonicalHeaderKey(header[i])] = append(req.Header[http.CanonicalHeaderKey(header[i])], header[i+1])
	}
	return s.Send(t, req)
}

// Send sends a request as it is.
func (s *Server) Send(t testing.TB, req *http.Request) *http.Response {
	t.Helper()
	resp, err := s.RoundTrip(t, req) // no redirects, no cookies
	if err != nil && time.Since(s.loaded) < time.Second {
		// What waited in the queue of the listener that a reload closed is
		// reset, whatever this plugin does.
		again := req.Clone(req.Context())
		if req.GetBody != nil {
			again.Body, _ = req.GetBody()
		}
		return s.Send(t, again)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	if s.HTTP > 1 && resp.ProtoMajor != s.HTTP {
		t.Fatalf("%s was spoken, not HTTP/%d", resp.Proto, s.HTTP)
	}
	if s.Check != nil {
		s.Check(t, resp)
	}
	return resp
}

// RoundTrip sends a request, and returns what comes of it.
func (s *Server) RoundTrip(t testing.TB, req *http.Request) (*http.Response, error) {
	switch s.HTTP {
	case 2:
		return overHTTP2.RoundTrip(req)
	case 3:
		req = req.Clone(req.Context())
		req.URL.Scheme, req.URL.Host, req.Host = "https", s.tlsHost(), ""
		overHTTP3 := &http3.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
		t.Cleanup(func() { _ = overHTTP3.Close() })
		return overHTTP3.RoundTrip(req)
	}
	return overHTTP1.RoundTrip(req)
}

func (s *Server) tlsHost() string { return fmt.Sprintf("localhost:%d", s.TLSPort) }

// They keep no connections: a server that stops or reloads closes them, and
// what is sent at that moment is lost, whatever this plugin does.
var (
	overHTTP1 = &http.Transport{DisableKeepAlives: true}
	overHTTP2 = &http.Transport{DisableKeepAlives: true, Protocols: new(http.Protocols)}
)

func init() { overHTTP2.Protocols.SetUnencryptedHTTP2(true) }

// Bearer returns the arguments of Do that send a token.
func Bearer(token string) []string { return []string{"Authorization", "Bearer " + token} }

// Body reads and closes a response's body.
func Body(t testing.TB, resp *http.Response) string {
	t.Helper()
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// Upstream is an HTTP server that records what reaches it.
type Upstream struct {
	server *httptest.Server

	mu       sync.Mutex
	requests []Request
}

// Request is what reached the upstream.
type Request struct {
	Method, URI string
	Header      http.Header
	Trailer     http.Header
	Body        string
}

func newUpstream(t testing.TB) *Upstream {
	u := new(Upstream)
	u.server = httptest.NewServer(http.HandlerFunc(u.record))
	t.Cleanup(u.server.Close)
	return u
}

func (u *Upstream) record(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	u.mu.Lock()
	u.requests = append(u.requests, Request{r.Method, r.RequestURI, r.Header.Clone(), r.Trailer.Clone(), string(body)})
	u.mu.Unlock()
	fmt.Fprintf(w, "hello %s", r.Header.Get("X-Client-Id"))
}

// Address returns the host and port of the upstream.
func (u *Upstream) Address() string { return u.server.Listener.Addr().String() }

// Take returns the requests that came since the last call.
func (u *Upstream) Take() []Request {
	u.mu.Lock()
	defer u.mu.Unlock()
	taken := u.requests
	u.requests = nil
	return taken
}
