package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
)

// The groups of cases, and tables of the report.
const (
	proxied   = "guard, reverse_proxy"
	responded = "guard, respond"
	refused   = "guard, refusals"
	tokens    = "token endpoint"
	changes   = "durable changes"
)

const (
	concurrency = 16 // connections of a load
	tokenLimit  = "a handler that does no more than it must (limit)"
	hmacSHA256  = "HMAC-SHA-256"
	plainText   = "none: compared as it is"
)

// scenery is a set of servers, and what is measured on them.
type scenery struct {
	name        string
	bench       *bench
	service     *server
	main        *caddy            // bare handlers, guards and the token endpoint, by ES256
	cold        map[string]*caddy // for tokens that are used once, by algorithm
	write       *caddy            // for changes
	cases       []*testCase
	comparisons []comparison
}

// endings are what stands behind the guard in the two groups of its cases.
func endings(service string) map[string]string {
	return map[string]string{proxied: "reverse_proxy " + service, responded: "respond \"Hello!\n\""}
}

func (b *bench) newScenery() *scenery {
	service := b.newService()
	s := &scenery{name: "cases", bench: b, service: service, cold: make(map[string]*caddy)}
	spec := storeSpec{algorithm: "ES256", credentials: 10_000, tokens: 200_000, revoked: 1_000, revokedTokens: 1_000}
	if b.quick {
		spec = storeSpec{algorithm: "ES256", credentials: 1_000, tokens: 10_000, revoked: 100, revokedTokens: 100}
	}
	s.main = b.caddy("caddy", spec, mainSites(service.listens[0]))
	prepare := s.main.prepare
	s.main.prepare = func(ctx context.Context) error {
		return errors.Join(prepare(ctx), writeGarbage(s.main.file("tokens"), b.program("garbage"), b.program("forged")))
	}
	// Making an RS256 token costs a millisecond: there are fewer of them.
	for algorithm, n := range map[string]int{"ES256": 200_000, "EdDSA": 200_000, "RS256": 40_000} {
		if b.quick {
			n /= 20
		}
		sites := map[string]string{"token": "client_credentials"}
		for end, directive := range endings(service.listens[0]) {
			sites[end] = "bearer_auth items:read\n" + directive
		}
		s.cold[algorithm] = b.caddy("cold "+algorithm, storeSpec{algorithm: algorithm, credentials: 100, tokens: n}, sites)
	}
	// On the disk: what a durable change costs is the question.
	s.write = b.onCopy(b.caddy("changes", storeSpec{algorithm: "ES256", credentials: 20_000, tokens: 1},
		map[string]string{"token": "client_credentials"}), b.cache)
	s.addGuardCases()
	s.addTokenCases()
	s.addPeers()
	s.addComparisons()
	return s
}

func (b *bench) newService() *server {
	address := freeAddress()
	return b.add(&server{name: "service", command: []string{b.program("service"), address}, listens: []string{address}, core: b.loadCore})
}

// guards are what the main Caddy has in front of each ending.
var guards = []struct{ name, directive string }{
	{"bare", ""},
	{doesNothing, "bench_nothing"},
	{guardOneToken, "bearer_auth items:read"},
	{"a map of tokens (limit)", "bench_look_up * STORE/tokens"},
	{"golang-jwt on each request", "bench_verify_each * STORE/signing_key.pem"},
	{"forward_auth", "forward_auth SERVICE {\n\t\turi /auth\n\t}"},
}

func mainSites(service string) map[string]string {
	sites := map[string]string{
		"token": "client_credentials",
		"limit": "bench_token * STORE/signing_key.pem",
		"401":   "respond 401",
	}
	for end, directive := range endings(service) {
		for _, g := range guards {
			sites[end+g.name] = replaceService(g.directive, service) + "\n" + directive
		}
	}
	return sites
}

func (s *scenery) add(c *testCase) {
	if c.connections == 0 {
		c.connections = concurrency
	}
	if c.status == 0 {
		c.status = http.StatusOK
	}
	if c.request.method == "" {
		c.request.method = http.MethodGet
	}
	if c.request.path == "" {
		c.request.path = "/"
	}
	s.cases = append(s.cases, c)
}

func (s *scenery) addGuardCases() {
	token := lineOf(s.main.file("tokens"))
	for half, end := range []string{proxied, responded} {
		for _, g := range guards {
			s.add(&testCase{
				group: end, name: g.name, server: s.main.server, address: s.main.sites[end+g.name].address,
				request: request{token: token},
			})
		}
		guarded := s.main.sites[end+guardOneToken].address
		s.add(&testCase{
			group: end, name: "bearer_auth, 10,000 tokens in turn", server: s.main.server, address: guarded,
			request: request{lines: s.main.file("tokens"), as: "token", firstN: 10_000},
		})
		for _, algorithm := range []string{"ES256", "EdDSA", "RS256"} {
			c := s.cold[algorithm]
			s.add(&testCase{
				group: end, name: "bearer_auth, each token once, " + algorithm, server: c.server, address: c.sites[end].address,
				request: request{lines: c.file("tokens"), as: "token", order: once, half: half + 1},
			})
		}
	}
	guarded := s.main.sites[responded+guardOneToken].address
	for _, r := range []struct{ name, file, address string }{
		{"respond 401", s.bench.program("garbage"), s.main.sites["401"].address},
		{"bearer_auth, garbage", s.bench.program("garbage"), guarded},
		{"bearer_auth, wrong signatures", s.bench.program("forged"), guarded},
		{"bearer_auth, revoked tokens", s.main.file("revoked_tokens"), guarded},
		{"bearer_auth, tokens of revoked credentials", s.main.file("tokens_of_revoked"), guarded},
	} {
		s.add(&testCase{
			group: refused, name: r.name, server: s.main.server, address: r.address,
			request: request{lines: r.file, as: "token"}, status: http.StatusUnauthorized,
		})
	}
}

const (
	tokenPath   = "/api/v0/oauth/token"
	managePath  = "/api/v0/client-credentials"
	formType    = "application/x-www-form-urlencoded"
	boundary    = "----bench"
	multipartMS = "multipart/form-data; boundary=" + boundary
)

// dialects are the forms of one request for a token.
var dialects = []struct {
	name    string
	request func(clients string) request
}{
	{"RFC 6749, form", func(clients string) request {
		return request{contentType: formType, body: lineOf(clients)}
	}},
	{"RFC 6749, Basic", func(clients string) request {
		return request{
			contentType: formType, body: func() (string, error) { return "grant_type=client_credentials", nil },
			basic: fromClient(clients, func(id, secret string) string {
				return base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(id) + ":" + url.QueryEscape(secret)))
			}),
		}
	}},
	{"original, multipart", func(clients string) request {
		return request{contentType: multipartMS, body: fromClient(clients, func(id, secret string) string {
			return part("GrantType", "client_credentials") + part("ClientId", id) + part("ClientSecret", secret) + "--" + boundary + "--\r\n"
		})}
	}},
	{"original, JSON", func(clients string) request {
		return request{contentType: "application/json", body: fromClient(clients, func(id, secret string) string {
			text, _ := json.Marshal(map[string]string{"GrantType": "client_credentials", "ClientId": id, "ClientSecret": secret}) // texts always can be
			return string(text)
		})}
	}},
}

func part(name, value string) string {
	return "--" + boundary + "\r\nContent-Disposition: form-data; name=\"" + name + "\"\r\n\r\n" + value + "\r\n"
}

// fromClient returns a function that writes the first client of a file in
// another form.
func fromClient(clients string, write func(id, secret string) string) func() (string, error) {
	return func() (string, error) {
		line, err := firstLine(clients)
		if err != nil {
			return "", err
		}
		form, err := url.ParseQuery(line)
		return write(form.Get("client_id"), form.Get("client_secret")), err
	}
}

func (s *scenery) addTokenCases() {
	for _, algorithm := range []string{"ES256", "EdDSA", "RS256"} {
		c := s.cold[algorithm]
		if algorithm == "ES256" {
			c = s.main
		}
		for _, d := range dialects {
			r := tokenRequest(d.request(c.file("clients")))
			s.add(&testCase{
				group: tokens, name: "this plugin, " + d.name + ", " + algorithm, algorithm: algorithm, secret: hmacSHA256,
				server: c.server, address: c.sites["token"].address, request: r,
			})
		}
	}
	s.add(&testCase{
		group: tokens, name: tokenLimit, algorithm: "ES256", secret: hmacSHA256,
		server: s.main.server, address: s.main.sites["limit"].address, request: formRequest("/", "limit", "limit"),
	})
	s.addChanges()
}

func tokenRequest(r request) request {
	r.method, r.path = http.MethodPost, tokenPath
	return r
}

func formRequest(path, id, secret string) request {
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {id}, "client_secret": {secret}}.Encode()
	return request{method: http.MethodPost, path: path, contentType: formType, body: func() (string, error) { return form, nil }}
}

func (s *scenery) addChanges() {
	manager := lineOf(s.write.file("manager_token"))
	address := s.write.sites["token"].address
	s.add(&testCase{
		group: changes, name: "create a credential", server: s.write.server, address: address,
		status: http.StatusCreated, connections: 64,
		request: createRequest(manager),
	})
	ids := s.bench.program("ids")
	prepare := s.write.prepare
	s.write.prepare = func(ctx context.Context) error {
		return errors.Join(prepare(ctx), writeIDs(s.write.file("clients"), ids, 0))
	}
	s.add(&testCase{
		group: changes, name: "revoke a credential", server: s.write.server, address: address,
		status: http.StatusNoContent, connections: 64,
		request: revokeRequest(manager, ids),
	})
}

func createRequest(manager func() (string, error)) request {
	return request{
		method: http.MethodPost, path: managePath, token: manager, contentType: "application/json",
		body: func() (string, error) { return `{"name":"bench"}`, nil },
	}
}

func revokeRequest(manager func() (string, error), ids string) request {
	return request{method: http.MethodDelete, path: managePath + "/", token: manager, lines: ids, as: "path", order: once}
}

// writeIDs writes the client ids of a file of forms, but for the first ones.
func writeIDs(clients, ids string, skip int) error {
	text, err := os.ReadFile(clients)
	if err != nil {
		return err
	}
	lines := splitLines(text)[skip:]
	return writeFile(ids, len(lines), func(i int) (string, error) {
		form, err := url.ParseQuery(lines[i])
		return form.Get("client_id"), err
	})
}

// addPeers adds servers that others have written.
func (s *scenery) addPeers() {
	b := s.bench
	peer := func(name, algorithm, secret, path, id, password string, command func(address string) []string, vars bool) {
		address := freeAddress()
		server := b.add(&server{name: name + " " + algorithm, command: command(address), listens: []string{address}, core: b.serverCore})
		if vars {
			server.vars = address
		}
		s.add(&testCase{
			group: tokens, name: name, algorithm: algorithm, secret: secret, server: server, address: address,
			request: formRequest(path, id, password),
		})
	}
	for _, token := range []string{"ES256", "RS256", "opaque"} {
		peer("zitadel/oidc, "+token, token, plainText, "/oauth/token", "sid1", "verysecret", func(address string) []string {
			return []string{b.program("zitadel"), "-listen", address, "-token", token}
		}, true)
	}
	for _, variant := range []struct{ token, flag, secret string }{
		{"ES256", "sha256", "SHA-256"}, {"opaque", "sha256", "SHA-256"}, {"opaque", "bcrypt", "bcrypt, cost 10"},
	} {
		peer("fosite, "+variant.token+", "+variant.secret, variant.token, variant.secret, "/token", "my-client", "foobar", func(address string) []string {
			return []string{b.program("fosite"), "-listen", address, "-token", variant.token, "-hash", variant.flag}
		}, true)
	}
	if b.node != "" {
		for _, token := range []string{"ES256", "opaque"} {
			peer("oidc-provider, "+token, token, plainText, "/token", "client", "secret", func(address string) []string {
				return []string{b.node, filepath.Join("peers", "oidc-provider", "server.mjs"), port(address), token}
			}, false)
		}
	}
	if b.nginx != "" {
		server, bare, asking := b.nginxServer(s.service.listens[0])
		token := lineOf(s.main.file("tokens"))
		s.add(&testCase{group: proxied, name: "nginx, bare", server: server, address: bare, request: request{token: token}})
		s.add(&testCase{group: proxied, name: "nginx, auth_request", server: server, address: asking, request: request{token: token}})
	}
}

// find returns the case of a name.
func (s *scenery) find(group, name string) *testCase {
	i := slices.IndexFunc(s.cases, func(c *testCase) bool { return c.group == group && c.name == name })
	if i < 0 {
		log.Panicf("there is no case %s, %s", group, name)
	}
	return s.cases[i]
}

func (b *bench) wants(name string) bool { return b.only.MatchString(name) }

// ready starts what a case needs, and checks that it is answered as it should.
func (s *scenery) ready(ctx context.Context, c *testCase) error {
	needed := []*server{c.server}
	if s.main != nil {
		needed = []*server{s.service, s.main.server, c.server}
	}
	for _, server := range needed {
		if err := server.ensure(ctx); err != nil {
			return err
		}
	}
	return c.probe(ctx)
}

func (c *testCase) fullName() string { return c.group + ", " + c.name }

func (c *testCase) emptyResult() result {
	return result{Group: c.group, Name: c.name, Algorithm: c.algorithm, Secret: c.secret, Use: c.use, Credentials: c.credentials}
}
