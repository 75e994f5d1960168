package clientcredentials_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

// clocksAhead is by how many seconds the clocks of the nodes are ahead.
var clocksAhead = [3]int{0, 5, -5}

// byClock is what a node's clock says at a moment.
func byClock(node int, moment time.Time) time.Time {
	return moment.Add(time.Duration(clocksAhead[node]) * time.Second)
}

func TestNodesWhoseClocksAreApartAreOneServer(t *testing.T) {
	c := startCluster(t, clocksAhead[:]...)
	t.Run("their clocks are apart", c.clocksAreApart)
	end := c.expireMeanwhile(t)
	t.Run("no lease runs out", func(t *testing.T) {
		l := newLoad(t)
		kept := c.create(t, c.nodes[0])
		for _, n := range c.nodes {
			token := n.token(t, kept)
			l.keep("calls to "+n.name, []int{200}, func() (answer, error) { return n.call(token) })
			l.keep("health of "+n.name, []int{200}, n.health)
		}
		t.Run("a token counts on all nodes at once", c.tokensCountOnAll)
		t.Run("what is revoked through one is refused on all", c.eachRevokes)
		l.end(t)
	})
	t.Run("a node that is cut off accepts nothing that was revoked", c.aNodeIsCutOff)
	t.Run("a credential expires by each node's clock", end)
}

// clocksAreApart sees by whose clock each node issues tokens.
func (c *cluster) clocksAreApart(t *testing.T) {
	credential := c.create(t, c.nodes[0])
	for i, n := range c.nodes {
		before := time.Now()
		token := n.token(t, credential)
		after := time.Now()
		var claims struct {
			IssuedAt int64 `json:"iat"`
		}
		payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
		if err == nil {
			err = json.Unmarshal(payload, &claims)
		}
		if err != nil || claims.IssuedAt < byClock(i, before).Unix() || claims.IssuedAt > byClock(i, after).Unix() {
			t.Fatalf("%s has issued a token at %d, not from %v to %v: %v", n.name, claims.IssuedAt, byClock(i, before), byClock(i, after), err)
		}
	}
}

// eachRevokes has each node revoke credentials, of which all have issued tokens.
func (c *cluster) eachRevokes(t *testing.T) {
	const times = 20
	for range times {
		for _, through := range c.nodes {
			credential := c.create(t, through)
			var tokens []string
			for _, n := range c.nodes {
				tokens = append(tokens, n.token(t, credential))
			}
			want(t, 204, "revoking through "+through.name)(through.revoke(c.manager, credential.ClientID))
			for _, n := range c.nodes {
				for i, token := range tokens {
					want(t, 401, fmt.Sprintf("a token of node %d, revoked through %s, on %s", i+1, through.name, n.name))(n.call(token))
				}
			}
		}
	}
	t.Logf("%d tokens were refused on all nodes after their revocation", times*9)
}

// expireMeanwhile has clients use a credential until it has expired on each node. What
// is returned waits for that, and tells what they got.
func (c *cluster) expireMeanwhile(t *testing.T) func(t *testing.T) {
	t.Helper()
	expires := time.Now().Add(10 * time.Second).Truncate(time.Second) // 5 s from now, by the clock that is ahead
	body, err := request(c.nodes[0].Server, "POST", credentialsPath, fmt.Sprintf(`{"expires":%q}`, expires.UTC().Format(time.RFC3339)),
		201, "application/json", c.manager)
	var made testserver.Credential
	if err == nil {
		err = json.Unmarshal([]byte(body), &made)
	}
	if err != nil {
		t.Fatal(err)
	}
	l := newLoad(t)
	var tokens []string
	for i, n := range c.nodes {
		token := n.token(t, made)
		tokens = append(tokens, token)
		use := func(what string, send func() (answer, error)) {
			l.clients.Go(func() {
				for a := (answer{}); a.status != 401 && !l.ended.Load(); time.Sleep(5 * time.Millisecond) {
					sent := time.Now()
					var err error
					a, err = send()
					answered := time.Now()
					switch {
					case err == nil && a.String() == "503": // while it is cut off
					case !byClock(i, sent).Before(expires):
						l.note(err == nil && a.status == 401, "%s after it has expired: %v %v", what, a, err)
					case byClock(i, answered).Before(expires.Add(-time.Second)): // no token lives for less
						l.note(err == nil && a.status == 200, "%s before it expires: %v %v", what, a, err)
					}
				}
			})
		}
		use("a token on "+n.name, func() (answer, error) { return n.call(token) })
		use("a secret on "+n.name, func() (answer, error) { return n.askForToken(made) })
	}
	return func(t *testing.T) {
		l.clients.Wait()
		l.end(t)
		for _, n := range c.nodes {
			for _, token := range tokens {
				want(t, 401, "a token of a credential that has expired on all nodes, on "+n.name)(n.call(token))
			}
			want(t, 401, "the secret, on "+n.name)(n.askForToken(made))
			for _, what := range []string{"a token", "a secret"} {
				if got := what + " on " + n.name + " before it expires: 200 <nil>"; l.answers[got] == 0 {
					t.Errorf("never: %s", got)
				}
			}
		}
	}
}
