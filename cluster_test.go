package clientcredentials_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/handler"
	"github.com/clientcredentials/caddy-client-credentials/internal/testpostgres"
	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// cluster is three servers that share a database.
type cluster struct {
	postgres *testpostgres.Server
	nodes    [3]*node
	manager  string // a token that manages credentials
}

// node is one of the servers.
type node struct {
	*testserver.Server
	name    string
	site    string              // its Caddyfile
	network *testpostgres.Proxy // between it and the database
}

// sharedSite is the Caddyfile of a node, less its connection string.
const sharedSite = `{
	{{global}}
	client_credentials {
		issuer https://cluster.test
		master_key MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=
		token_lifetime 1h
		store postgres %q {
			lease 5s # on a busy machine, a process may get no processor for two
		}
	}
}
{{url}} {
	client_credentials
	respond "hello {http.auth.user.id}"
}
`

// startCluster starts nodes on an empty database. Their clocks may be ahead, in
// seconds, or behind.
func startCluster(t *testing.T, ahead ...int) *cluster {
	t.Helper()
	postgres := testpostgres.Start(t)
	database := postgres.NewDatabase(t)
	var networks [3]*testpostgres.Proxy
	for i := range networks {
		networks[i] = testpostgres.NewProxy(t, postgres)
	}
	c := startNodes(t, func(i int) string { return networks[i].URL(database) }, ahead...)
	c.postgres = postgres
	for i, n := range c.nodes {
		n.network = networks[i]
	}
	return c
}

// startNodes starts all nodes at once.
func startNodes(t *testing.T, url func(i int) string, ahead ...int) *cluster {
	t.Helper()
	c := new(cluster)
	var starting sync.WaitGroup
	for i := range c.nodes {
		n := newNode(t, fmt.Sprintf("node %d", i+1), url(i))
		if len(ahead) > 0 {
			n.SetClock(t, ahead[i])
		}
		c.nodes[i] = n
		starting.Go(func() { n.Start(t, n.site) })
	}
	starting.Wait()
	if t.Failed() {
		t.FailNow()
	}
	c.manager = manager(t, c.nodes[0].Server)
	return c
}

func newNode(t *testing.T, name, url string) *node {
	t.Helper()
	n := &node{Server: testserver.New(t), name: name, site: fmt.Sprintf(sharedSite, url)}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for line := range strings.Lines(n.Log(t)) {
			if strings.Contains(line, `"level":"warn"`) || strings.Contains(line, `"level":"error"`) {
				t.Logf("%s: %s", name, line)
			}
		}
	})
	return n
}

const (
	formType        = "application/x-www-form-urlencoded"
	credentialsPath = "/api/v0/client-credentials"
)

// client keeps its connections, and as many as there are requests at a time.
var client = &http.Client{
	Transport: &http.Transport{MaxIdleConnsPerHost: 64},
	Timeout:   time.Minute,
}

// answer is what a request got.
type answer struct {
	status int
	retry  bool // it says when to try again
	body   string
}

func (a answer) String() string {
	if a.status == http.StatusServiceUnavailable && !a.retry {
		return "503 without Retry-After"
	}
	return strconv.Itoa(a.status)
}

func (n *node) send(method, path, body string, header http.Header) (a answer, err error) {
	req, err := http.NewRequest(method, n.URL(path), strings.NewReader(body))
	if err != nil {
		return a, err
	}
	req.Header = header
	resp, err := client.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header.Get("Retry-After") != "", string(text)}, err
}

func bearer(token string) http.Header {
	return http.Header{"Authorization": {"Bearer " + token}}
}

// call sends a request that the guard has to let through.
func (n *node) call(token string) (answer, error) { return n.send("GET", "/x", "", bearer(token)) }

func (n *node) health() (answer, error) { return n.send("GET", "/api/v0/health", "", nil) }

func (n *node) askForToken(c testserver.Credential) (answer, error) {
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {c.ClientID}, "client_secret": {c.Secret}}
	return n.send("POST", "/api/v0/oauth/token", form.Encode(), http.Header{"Content-Type": {formType}})
}

func (n *node) revoke(manager, clientID string) (answer, error) {
	return n.send("DELETE", credentialsPath+"/"+clientID, "", bearer(manager))
}

// want ends the test where an answer is not the one that is expected.
func want(t *testing.T, status int, what string) func(answer, error) answer {
	return func(a answer, err error) answer {
		t.Helper()
		if err != nil || a.String() != strconv.Itoa(status) {
			t.Fatalf("%s: %v %s %v, want %d", what, a, a.body, err, status)
		}
		return a
	}
}

// create makes a credential through a node.
func (c *cluster) create(t *testing.T, n *node) (made testserver.Credential) {
	t.Helper()
	body, err := request(n.Server, "POST", credentialsPath, "{}", http.StatusCreated, "application/json", c.manager)
	if err == nil {
		err = json.Unmarshal([]byte(body), &made)
	}
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// token returns the token that was issued.
func (a answer) token() (token string, ok bool) {
	var issued struct {
		Token string `json:"access_token"`
	}
	err := json.Unmarshal([]byte(a.body), &issued)
	return issued.Token, err == nil && a.status == http.StatusOK && issued.Token != ""
}

// token obtains a token from a node.
func (n *node) token(t *testing.T, c testserver.Credential) string {
	t.Helper()
	token, ok := want(t, http.StatusOK, n.name+" issues a token")(n.askForToken(c)).token()
	if !ok {
		t.Fatal("there is no token in the answer")
	}
	return token
}

// until polls until the answer has that status, and returns how long it took
// since a moment. Whatever else is answered meanwhile is for a load to judge.
func until(t *testing.T, since time.Time, status int, what string, ask func() (answer, error)) time.Duration {
	t.Helper()
	var last answer
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if last, err = ask(); err == nil && last.String() == strconv.Itoa(status) {
			return time.Since(since)
		}
	}
	t.Fatalf("%s: still %v %s %v, not %d", what, last, last.body, err, status)
	return 0
}

// load is what clients send, again and again until it ends.
type load struct {
	ended   atomic.Bool
	clients sync.WaitGroup

	mu      sync.Mutex
	answers map[string]int // by what was asked for, and the answer
	wrong   map[string]int
}

func newLoad(t *testing.T) *load {
	l := &load{answers: make(map[string]int), wrong: make(map[string]int)}
	t.Cleanup(func() { l.ended.Store(true); l.clients.Wait() })
	return l
}

// keep has a client send something. Only these answers are right.
func (l *load) keep(what string, right []int, send func() (answer, error)) {
	l.repeat(func() {
		a, err := send()
		if err != nil {
			l.note(false, "%s: %v", what, err)
			return
		}
		l.note(slices.Contains(right, a.status) && a.String() == strconv.Itoa(a.status), "%s: %v", what, a)
	})
}

// repeat has a client do something.
func (l *load) repeat(do func()) {
	l.clients.Go(func() {
		for !l.ended.Load() {
			do()
			time.Sleep(time.Millisecond) // the nodes share two processors with all this
		}
	})
}

func (l *load) note(right bool, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	got := fmt.Sprintf(format, args...)
	l.answers[got]++
	if !right {
		l.wrong[got]++
	}
}

// more waits for so many more answers.
func (l *load) more(t *testing.T, answers int) {
	t.Helper()
	total := func() (n int) {
		l.mu.Lock()
		defer l.mu.Unlock()
		for _, times := range l.answers {
			n += times
		}
		return n
	}
	until, deadline := total()+answers, time.Now().Add(30*time.Second)
	for total() < until {
		if time.Now().After(deadline) {
			t.Fatal("the clients get no answers")
		}
		time.Sleep(time.Millisecond)
	}
}

// end stops the clients and tells what they got.
func (l *load) end(t *testing.T) {
	t.Helper()
	l.ended.Store(true)
	l.clients.Wait()
	for _, got := range slices.Sorted(maps.Keys(l.answers)) {
		t.Logf("%6d × %s", l.answers[got], got)
	}
	for got, times := range l.wrong {
		t.Errorf("%d times %s", times, got)
	}
}

func TestThreeNodesAreOneServer(t *testing.T) {
	c := startCluster(t)
	t.Run("a token counts on all nodes at once", c.tokensCountOnAll)
	t.Run("what is revoked is refused on all nodes", c.revocationsHoldOnAll)
	t.Run("a node that is cut off accepts nothing that was revoked", c.aNodeIsCutOff)
	t.Run("a revoked key counts on no node", c.keysAreRevoked)
	t.Run("a rolling reload fails no request", c.allReload)
	t.Run("the database is killed", c.theDatabaseIsKilled)
}

func (c *cluster) tokensCountOnAll(t *testing.T) {
	keys := want(t, http.StatusOK, "the key set")(c.nodes[0].send("GET", "/api/v0/oauth/jwks", "", nil)).body
	for _, n := range c.nodes {
		if other := want(t, http.StatusOK, "the key set")(n.send("GET", "/api/v0/oauth/jwks", "", nil)).body; other != keys {
			t.Errorf("%s has another key set: %s, not %s", n.name, other, keys)
		}
	}
	const times = 10
	var slowest time.Duration
	for range times {
		for _, from := range c.nodes {
			credential := c.create(t, from)
			for _, by := range c.nodes { // one that was created just now
				token := by.token(t, credential)
				for _, to := range c.nodes {
					begun := time.Now()
					want(t, http.StatusOK, "a token of "+by.name+" on "+to.name)(to.call(token))
					slowest = max(slowest, time.Since(begun))
				}
			}
		}
	}
	t.Logf("%d tokens were accepted by all at once; the slowest first call took %v", times*9, slowest)
}

// revocations is how many are tried: 300, or what TEST_REVOCATIONS says.
func revocations(t *testing.T) int {
	text := os.Getenv("TEST_REVOCATIONS")
	if text == "" {
		return 300
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// Clients send a token to all nodes while it is revoked through the first one.
// None of the requests that are sent after the answer may be let through.
func (c *cluster) revocationsHoldOnAll(t *testing.T) {
	l := newLoad(t)
	kept := c.create(t, c.nodes[0])
	for _, n := range c.nodes {
		token := n.token(t, kept)
		l.keep("calls to "+n.name, []int{http.StatusOK}, func() (answer, error) { return n.call(token) })
	}
	l.keep("tokens of "+c.nodes[1].name, []int{http.StatusOK}, func() (answer, error) { return c.nodes[1].askForToken(kept) })

	var revoked atomic.Int64
	var tries, accepted, before atomic.Int64
	var mu sync.Mutex
	var took []time.Duration
	revokeOne := func() {
		credential := c.create(t, c.nodes[2])
		token := c.nodes[1].token(t, credential)
		var answered, done atomic.Bool
		var sent, clients sync.WaitGroup
		for _, n := range c.nodes {
			sent.Add(1)
			clients.Go(func() {
				for times := 0; ; times++ {
					last, after := answered.Load(), done.Load()
					a, err := n.call(token)
					switch {
					case err != nil, a.status != http.StatusOK && a.status != http.StatusUnauthorized:
						t.Errorf("%s answers %v %v", n.name, a, err)
					case after:
						tries.Add(1)
						if a.status == http.StatusOK {
							accepted.Add(1)
						}
					case a.status == http.StatusOK:
						before.Add(1)
					}
					if times == 0 {
						sent.Done()
					}
					if last {
						return
					}
					time.Sleep(time.Millisecond)
				}
			})
		}
		sent.Wait()
		begun := time.Now()
		a, err := c.nodes[0].revoke(c.manager, credential.ClientID)
		mu.Lock()
		took = append(took, time.Since(begun))
		mu.Unlock()
		if err != nil || a.status != http.StatusNoContent {
			t.Errorf("revoking: %v %s %v", a, a.body, err)
		} else {
			done.Store(true)
		}
		answered.Store(true)
		clients.Wait()
	}
	total := int64(revocations(t))
	var workers sync.WaitGroup
	for range 4 {
		workers.Go(func() {
			for revoked.Add(1) <= total && !t.Failed() {
				revokeOne()
			}
		})
	}
	workers.Wait()
	l.end(t)
	if accepted.Load() > 0 {
		t.Errorf("%d of %d requests were let through after their token was revoked", accepted.Load(), tries.Load())
	}
	if before.Load() < total {
		t.Errorf("only %d requests were let through before", before.Load())
	}
	slices.Sort(took)
	t.Logf("%d revocations: %d of %d requests accepted after the answer, %d before it; revoking took %v (median), %v (99 %%), %v at most",
		len(took), accepted.Load(), tries.Load(), before.Load(), took[len(took)/2], took[len(took)*99/100], took[len(took)-1])
}

func (c *cluster) aNodeIsCutOff(t *testing.T) {
	one, two, three := c.nodes[0], c.nodes[1], c.nodes[2]
	kept, gone := c.create(t, one), c.create(t, one)
	good, revoked := one.token(t, kept), one.token(t, gone)
	l := newLoad(t)
	l.keep("good calls to node 1", []int{200}, func() (answer, error) { return one.call(good) })
	l.keep("good calls to node 2", []int{200, 503}, func() (answer, error) { return two.call(good) })
	l.keep("good calls to node 3", []int{200}, func() (answer, error) { return three.call(good) })
	for _, n := range c.nodes {
		want(t, 200, "before the revocation")(n.call(revoked))
	}

	two.network.Cut()
	begun := time.Now()
	want(t, 204, "revoking")(one.revoke(c.manager, gone.ClientID))
	took := time.Since(begun)
	want(t, 401, "revoked, on node 1")(one.call(revoked))
	want(t, 401, "revoked, on node 3")(three.call(revoked))
	for range 100 {
		want(t, 503, "revoked, on the node that is cut off")(two.call(revoked))
	}
	want(t, 503, "good, on the node that is cut off")(two.call(good))
	want(t, 503, "the health of the node that is cut off")(two.health())
	want(t, 503, "a token of the node that is cut off")(two.askForToken(kept))
	want(t, 503, "managing through the node that is cut off")(two.send("GET", credentialsPath, "", bearer(c.manager)))
	want(t, 200, "the health of another node")(three.health())
	begun = time.Now()
	want(t, 204, "revoking once more")(one.revoke(c.manager, c.create(t, one).ClientID))
	tookNext := time.Since(begun)

	l.keep("the revoked token on node 2", []int{401, 503}, func() (answer, error) { return two.call(revoked) })
	two.network.Heal()
	healed := time.Now()
	refused := until(t, healed, 401, "revoked, after the network has healed", func() (answer, error) { return two.call(revoked) })
	served := until(t, healed, 200, "good, after the network has healed", func() (answer, error) { return two.call(good) })
	issues := until(t, healed, 200, "a token, after the network has healed", func() (answer, error) { return two.askForToken(kept) })
	want(t, 200, "health, after the network has healed")(two.health())
	l.end(t)
	t.Logf("revoking took %v while a node was cut off, and %v the next time; after the network had healed, the node refused after %v, let through after %v, and issued tokens after %v",
		took, tookNext, refused, served, issues)
}

// admin sends a request to the admin endpoint of a node.
func (n *node) admin(method, path, contentType, body string) (a answer, err error) {
	req, err := http.NewRequest(method, "http://"+n.Admin+path, strings.NewReader(body))
	if err != nil {
		return a, err
	}
	req.Header.Set("Content-Type", contentType)
	req.Close = true // a reload restarts the endpoint
	resp, err := client.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{status: resp.StatusCode, body: string(text)}, err
}

// keyID returns which key has signed a token.
func keyID(token string) string {
	var header struct {
		KeyID string `json:"kid"`
	}
	first, _, _ := strings.Cut(token, ".")
	text, _ := base64.RawURLEncoding.DecodeString(first)
	_ = json.Unmarshal(text, &header)
	return header.KeyID
}

// The key that signs is revoked again and again, the first time after another was
// published, while clients take tokens of each node to all nodes. No token of a key
// counts that was revoked before it was sent, and none of another key is refused.
func (c *cluster) keysAreRevoked(t *testing.T) {
	one := c.nodes[0]
	kept := c.create(t, one)
	var revoking, revoked sync.Map // by the keys' ids; when the answer came
	over := func(id string, at time.Time) bool {
		answered, known := revoked.Load(id)
		return known && at.After(answered.(time.Time))
	}
	use := func(l *load, token string, to *node) {
		id, sent := keyID(token), time.Now()
		a, err := to.call(token)
		_, ending := revoking.Load(id)
		switch {
		case over(id, sent):
			l.note(err == nil && a.status == 401, "a token of a revoked key on %s: %v %v", to.name, a, err)
		case ending:
			l.note(err == nil && (a.status == 200 || a.status == 401), "a token of a key that is being revoked on %s: %v %v", to.name, a, err)
		default:
			l.note(err == nil && a.status == 200, "a token of a good key on %s: %v %v", to.name, a, err)
		}
	}
	l := newLoad(t)
	for _, from := range c.nodes {
		l.repeat(func() {
			asked := time.Now()
			a, err := from.askForToken(kept)
			token, ok := a.token()
			if err != nil || !ok { // 503 while the node has no key that signs
				l.note(err == nil && a.String() == "503", "%s is asked for a token: %v %v", from.name, a, err)
				return
			}
			late := over(keyID(token), asked)
			l.note(!late, "%s issues a token of a key that was revoked before: %t", from.name, late)
			for _, to := range c.nodes {
				use(l, token, to)
			}
		})
	}

	published := want(t, 201, "rotate-key")(one.admin("POST", handler.AdminKeysPath, "", ""))
	var next issuer.Key
	if err := json.Unmarshal([]byte(published.body), &next); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.nodes {
		until(t, time.Now(), 200, "the next key is published on "+n.name, func() (answer, error) {
			a, err := n.send("GET", "/api/v0/oauth/jwks", "", nil)
			if !strings.Contains(a.body, next.ID) {
				a.status = 0
			}
			return a, err
		})
	}
	var took []time.Duration
	var old []string
	for round := range 5 {
		var tokens []string
		for _, n := range c.nodes {
			tokens = append(tokens, n.token(t, kept))
		}
		old = append(old, tokens...)
		signing := keyID(tokens[0])
		if round == 1 && signing != next.ID {
			t.Errorf("%s signs, not the key that was published, %s", signing, next.ID)
		}
		revoking.Store(signing, true)
		begun := time.Now()
		want(t, 204, "revoke-key")(one.admin("DELETE", handler.AdminKeysPath+"/"+signing, "", ""))
		took = append(took, time.Since(begun))
		revoked.Store(signing, time.Now())
		for _, to := range c.nodes {
			for _, token := range old {
				want(t, 401, "a token of a revoked key on "+to.name)(to.call(token))
			}
			token := to.token(t, kept)
			for _, by := range c.nodes {
				want(t, 200, "a token of "+to.name+" of the new key on "+by.name)(by.call(token))
			}
		}
	}
	l.end(t)
	c.manager = manager(t, one.Server) // its token was of the first key
	t.Logf("revoking a key took %v", took)
}

// One node after the other reloads, twice, while clients send requests to all of
// them, and while credentials are revoked through another node. A connection that is
// closed before its request was read is none of a plugin's: see
// TestAReloadUnderLoadFailsNoRequest.
func (c *cluster) allReload(t *testing.T) {
	l := newLoad(t)
	kept := c.create(t, c.nodes[0])
	var closed atomic.Int64
	again := func(send func() (answer, error)) func() (answer, error) {
		return func() (a answer, err error) {
			for range 10 {
				if a, err = send(); err == nil {
					break
				}
				closed.Add(1)
			}
			return a, err
		}
	}
	for _, n := range c.nodes {
		token := n.token(t, kept)
		l.keep("calls to "+n.name, []int{200}, again(func() (answer, error) { return n.call(token) }))
		l.keep("tokens of "+n.name, []int{200}, again(func() (answer, error) { return n.askForToken(kept) }))
		l.keep("health of "+n.name, []int{200}, again(n.health))
	}
	for round := range 2 {
		for i, n := range c.nodes {
			through, gone := c.nodes[(i+1)%len(c.nodes)], c.create(t, n)
			token := n.token(t, gone)
			site := strings.Replace(n.site, "token_lifetime 1h", fmt.Sprintf("token_lifetime %dm", 61+round), 1)
			var revoking sync.WaitGroup
			revoking.Go(func() {
				a, err := through.revoke(c.manager, gone.ClientID)
				l.note(err == nil && a.status == 204, "revoking through another node: %v %v", a, err)
			})
			want(t, 200, "loading a changed configuration into "+n.name)(n.admin("POST", "/load", "text/caddyfile", n.Expand(site)))
			revoking.Wait()
			l.more(t, 100)
			for _, other := range c.nodes {
				want(t, 401, "revoked during a reload, on "+other.name)(again(func() (answer, error) { return other.call(token) })())
			}
		}
	}
	l.end(t)
	t.Logf("%d connections were closed before their request was read", closed.Load())
}

// revoking are credentials that clients revoke, each once.
type revoking struct {
	tokens  map[string]string // by client id
	clients sync.WaitGroup

	mu      sync.Mutex
	answers map[int][]string // the client ids, by what their revocation was answered with
}

// revokeMany begins to revoke new credentials through nodes. What is answered with 204
// must be refused by all, from then on.
func (c *cluster) revokeMany(l *load, tokens map[string]string, through ...*node) *revoking {
	r := &revoking{tokens: tokens, answers: make(map[int][]string)}
	ids := make(chan string, len(tokens))
	for id := range tokens {
		ids <- id
	}
	close(ids)
	for i := range 4 {
		r.clients.Go(func() {
			for id := range ids {
				a, err := through[i%len(through)].revoke(c.manager, id)
				l.note(err == nil && (a.status == 204 || a.String() == "503"), "revoking meanwhile: %v %v", a, err)
				if a.status == 204 {
					for _, n := range c.nodes {
						a, err := n.call(tokens[id])
						l.note(err == nil && (a.status == 401 || a.String() == "503"), "revoked meanwhile, on %s: %v %v", n.name, a, err)
					}
				}
				r.mu.Lock()
				r.answers[a.status] = append(r.answers[a.status], id)
				r.mu.Unlock()
			}
		})
	}
	return r
}

// answered returns the client ids of those that were answered so.
func (r *revoking) answered(status int) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.answers[status])
}

// tokensToRevoke returns tokens of new credentials, by their client ids.
func (c *cluster) tokensToRevoke(t *testing.T) map[string]string {
	t.Helper()
	tokens := make(map[string]string)
	for range 60 {
		made := c.create(t, c.nodes[0])
		tokens[made.ClientID] = c.nodes[0].token(t, made)
	}
	return tokens
}

// refused sees that all nodes refuse what was revoked.
func (c *cluster) refused(t *testing.T, r *revoking, ids ...string) {
	t.Helper()
	for _, id := range ids {
		for _, n := range c.nodes {
			until(t, time.Now(), 401, "revoked, on "+n.name, func() (answer, error) {
				a, err := n.call(r.tokens[id])
				if a.status == 200 {
					t.Fatalf("what was revoked is let through on %s", n.name)
				}
				return a, err
			})
		}
	}
}

// PostgreSQL crashes while credentials are revoked, stays away for longer than the
// lease, and comes back.
func (c *cluster) theDatabaseIsKilled(t *testing.T) {
	one := c.nodes[0]
	kept, gone := c.create(t, one), c.create(t, one)
	good, revoked := one.token(t, kept), one.token(t, gone)
	want(t, 204, "revoking")(one.revoke(c.manager, gone.ClientID))
	tokens := c.tokensToRevoke(t)

	l := newLoad(t)
	for _, n := range c.nodes {
		l.keep("good calls to "+n.name, []int{200, 503}, func() (answer, error) { return n.call(good) })
		l.keep("revoked calls to "+n.name, []int{401, 503}, func() (answer, error) { return n.call(revoked) })
	}
	l.keep("tokens of node 2", []int{200, 503}, func() (answer, error) { return c.nodes[1].askForToken(kept) })
	all := c.revokeMany(l, tokens, one)
	for len(all.answered(204)) < 10 && !t.Failed() {
		time.Sleep(time.Millisecond)
	}

	c.postgres.Kill()
	killed := time.Now()
	for _, n := range c.nodes {
		until(t, killed, 503, "the database is away: "+n.name, func() (answer, error) { return n.call(good) })
		want(t, 503, "the health of "+n.name)(n.health())
	}
	stopped := time.Since(killed)
	c.postgres.Restart(t)
	back := time.Now()
	var served time.Duration
	for _, n := range c.nodes {
		served = max(served, until(t, back, 200, "calls to "+n.name+" after the database is back", func() (answer, error) { return n.call(good) }))
	}
	served = max(served, until(t, back, 200, "tokens of node 2 after the database is back", func() (answer, error) { return c.nodes[1].askForToken(kept) }))

	all.clients.Wait()
	c.refused(t, all, all.answered(204)...)
	again := make(map[int]int)
	for _, id := range all.answered(503) {
		a, err := one.revoke(c.manager, id)
		if err != nil || a.status != 204 && a.status != 404 { // where the first try has done it
			t.Errorf("revoking once more: %v %v", a, err)
		}
		again[a.status]++
		c.refused(t, all, id)
	}
	l.end(t)
	t.Logf("all nodes answered 503 %v after the kill, and served %v after the return; %d revocations were answered with 204, %d with 503, and these, tried again, with %v",
		stopped, served, len(all.answered(204)), len(all.answered(503)), again)
}
