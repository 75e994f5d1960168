package issuer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/internal/fetch"
	"github.com/clientcredentials/caddy-client-credentials/internal/testpostgres"
	"github.com/clientcredentials/caddy-client-credentials/store"
	"github.com/clientcredentials/caddy-client-credentials/store/postgres"
)

func TestMain(m *testing.M) { testpostgres.Main(m) }

// openNode returns an issuer that shares the database.
func openNode(t *testing.T, url string, lifetime time.Duration) *Issuer {
	t.Helper()
	iss, err := tryNode(t, url, lifetime)
	if err != nil {
		t.Fatal(err)
	}
	return iss
}

func tryNode(t *testing.T, url string, lifetime time.Duration) (*Issuer, error) {
	engine := &postgres.Postgres{Connection: url, Lease: caddy.Duration(time.Second)}
	if err := engine.Provision(caddy.Context{}); err != nil {
		return nil, err
	}
	st, err := engine.Open(context.Background())
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = st.Close() })
	reg, err := openRegistry(context.Background(), st, st.(store.Shared))
	if err != nil {
		return nil, err
	}
	t.Cleanup(reg.close)
	policy := Policy{Issuer: "https://issuer.test", Audience: "https://api.test", TokenLifetime: lifetime}
	iss, err := openIssuer(context.Background(), policy, reg, testKeyPolicy(t), fetch.New(true))
	if err != nil {
		return nil, err
	}
	app := &App{TokenCache: DefaultTokenCache, engine: engine}
	app.issuer.Store(iss)
	reg.hold(app)
	return iss, nil
}

// newNodes returns issuers that share an empty database.
func newNodes(t *testing.T, n int) []*Issuer {
	t.Helper()
	server := testpostgres.Shared(t)
	url := server.URL(server.NewDatabase(t))
	nodes := make([]*Issuer, n)
	for n := range nodes {
		nodes[n] = openNode(t, url, time.Hour)
	}
	return nodes
}

func verified(iss *Issuer, token string) error {
	_, err := iss.Verify(context.Background(), token)
	return err
}

func TestNodesThatStartTogetherHaveOneSetOfKeys(t *testing.T) {
	server := testpostgres.Shared(t)
	url := server.URL(server.NewDatabase(t))
	nodes := make([]*Issuer, 4)
	var starting sync.WaitGroup
	for n := range nodes {
		starting.Go(func() {
			var err error
			if nodes[n], err = tryNode(t, url, time.Hour); err != nil {
				t.Error(err)
			}
		})
	}
	starting.Wait()
	if t.Failed() {
		t.FailNow()
	}
	c, secret, token := clientWithToken(t, nodes[0])
	for n, node := range nodes {
		if node.keys().signing.id != nodes[0].keys().signing.id {
			t.Errorf("node %d signs with a key of its own", n)
		}
		if err := verified(node, token); err != nil {
			t.Errorf("node %d: %v", n, err)
		}
		useSecret(t, node, c.ClientID, secret)
	}
}

func TestWhatOneNodeHasRevokedNoOtherAccepts(t *testing.T) {
	nodes := newNodes(t, 3)
	for name, revoke := range map[string]func(iss *Issuer, c *Credential, token string) error{
		"credential": func(iss *Issuer, c *Credential, _ string) error {
			return iss.Revoke(t.Context(), "", c.ClientID)
		},
		"disabled": func(iss *Issuer, c *Credential, _ string) error {
			_, err := iss.Change(t.Context(), "", c.ClientID, Patch{Enabled: named(false)})
			return err
		},
		"token": func(iss *Issuer, c *Credential, token string) error {
			_, err := iss.RevokeToken(t.Context(), Caller{Credential: c}, token)
			return err
		},
		"key": func(iss *Issuer, _ *Credential, _ string) error {
			return iss.RevokeKey(t.Context(), iss.keys().signing.id)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, _, token := clientWithToken(t, nodes[0])
			var watchers [3]watcher
			for n, node := range nodes {
				access, err := node.Verify(t.Context(), token)
				if err != nil {
					t.Fatalf("node %d: %v", n, err)
				}
				if err := access.Watch(t.Context(), &watchers[n].Watch, &watchers[n]); err != nil {
					t.Fatal(err)
				}
			}
			if err := revoke(nodes[0], c, token); err != nil {
				t.Fatal(err)
			}
			for n, node := range nodes {
				if err := verified(node, token); !isRefusal(err) {
					t.Errorf("node %d says %v", n, err)
				}
				eventually(t, "a stream is ended", func() bool { return watchers[n].revoked.Load() > 0 })
				watchers[n].Stop()
			}
			_, _, next := clientWithToken(t, nodes[1]) // with another key, after one was revoked
			for n, node := range nodes {
				if err := verified(node, next); err != nil {
					t.Errorf("node %d, a token of another node: %v", n, err)
				}
			}
		})
	}
}

func TestANodeThatIsCutOffCannotTell(t *testing.T) {
	server := testpostgres.Shared(t)
	database := server.NewDatabase(t)
	proxy := testpostgres.NewProxy(t, server)
	near, far := openNode(t, server.URL(database), time.Hour), openNode(t, proxy.URL(database), time.Hour)
	c, secret, token := clientWithToken(t, near)
	if err := verified(far, token); err != nil {
		t.Fatal(err)
	}
	access, err := far.Verify(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	_, _, anotherToken := clientWithToken(t, near)
	another, err := far.Verify(t.Context(), anotherToken)
	if err != nil {
		t.Fatal(err)
	}
	var stream watcher
	if err := access.Watch(t.Context(), &stream.Watch, &stream); err != nil {
		t.Fatal(err)
	}
	defer stream.Stop()
	proxy.Cut()
	if err := near.Revoke(t.Context(), "", c.ClientID); err != nil {
		t.Fatal(err)
	}
	if err := verified(far, token); !errors.Is(err, store.ErrStale) {
		t.Errorf("a token that was revoked meanwhile: %v", err)
	}
	eventually(t, "a stream of that token is ended", func() bool { return stream.revoked.Load() > 0 })
	var late watcher // as if it had been on its way when the node was cut off, and the first of its list
	if err := another.Watch(t.Context(), &late.Watch, &late); err != nil {
		t.Fatal(err)
	}
	defer late.Stop()
	eventually(t, "a stream that begins late is ended", func() bool { return late.revoked.Load() > 0 })
	if _, err := far.Issue(t.Context(), tokenRequest(c.ClientID, secret)); !errors.Is(err, store.ErrStale) {
		t.Errorf("a token is issued: %v", err)
	}
	if err := far.Ready(); !errors.Is(err, store.ErrStale) {
		t.Errorf("it is ready: %v", err)
	}
	proxy.Heal()
	eventually(t, "it serves again", func() bool { return isRefusal(verified(far, token)) })
	if err := far.Ready(); err != nil {
		t.Error(err)
	}
}

func TestATokenThatLivesLongerElsewhereIsAccepted(t *testing.T) {
	server := testpostgres.Shared(t)
	url := server.URL(server.NewDatabase(t))
	first := openNode(t, url, time.Minute)
	second := openNode(t, url, time.Hour)
	_, _, token := clientWithToken(t, second)
	if err := verified(first, token); err != nil {
		t.Error(err)
	}
	if third := openNode(t, url, time.Minute); third.registry.longestLifetime() != time.Hour {
		t.Error("a shorter lifetime has taken the place of a longer one")
	}
}

func TestANodeWithTheMasterKeyFromBeforeSealsNothing(t *testing.T) {
	nodes := newNodes(t, 2)
	_, _, token := clientWithToken(t, nodes[1])
	records, before, err := readKeyRecords(t.Context(), nodes[1].store)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := records.makeKey(nodes[1].keyPolicy, time.Now(), true); err != nil {
		t.Fatal(err)
	}
	to, err := parseMasterKey("ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=")
	if err != nil {
		t.Fatal(err)
	}
	if err := nodes[0].reseal(t.Context(), to); err != nil {
		t.Fatal(err)
	}
	if err := records.commit(t.Context(), nodes[1].store, before); !errors.Is(err, store.ErrConflict) {
		t.Errorf("a key that was made just before the master key was replaced: %v", err)
	}
	if _, _, err := nodes[1].RotateKey(t.Context()); err == nil {
		t.Error("a node has made a key with the master key from before")
	}
	if err := verified(nodes[1], token); err != nil {
		t.Errorf("it does not go on with the keys that it knows: %v", err)
	}
	if _, err := openKeyring(t.Context(), nodes[0].registry, keyPolicy{master: to, algorithm: "ES256"}, time.Hour, nodes[0].registry.now()); err != nil {
		t.Errorf("the store does not open with its master key: %v", err)
	}
}

func TestAnAssertionCountsOnceOnAllNodes(t *testing.T) {
	nodes := newNodes(t, 2)
	expires := time.Now().Add(time.Minute)
	for n, want := range []bool{true, false} {
		first, err := nodes[n].registry.useOnce(t.Context(), "client", "id", expires, time.Now())
		if err != nil || first != want {
			t.Errorf("node %d: it is the first use: %t, %v", n, first, err)
		}
	}
	if err := nodes[0].registry.sweep(t.Context(), expires.Add(clockSetBack+2*time.Second)); err != nil {
		t.Fatal(err)
	}
	if left := keys(t, nodes[0].store, usedAssertionPrefix); len(left) > 0 {
		t.Errorf("%q are kept for ever", left)
	}
}

// A configuration that is loaded may fail after it has opened the store. Until it runs,
// which the end of the one from before says, its settings count for nobody; and then
// they do, whether the database can be reached or not.
func TestTheStoreHasTheSettingsOfTheConfigurationThatRuns(t *testing.T) {
	server := testpostgres.Shared(t)
	database := server.NewDatabase(t)
	proxy := testpostgres.NewProxy(t, server)
	open := func(engine postgres.Postgres) *App {
		t.Helper()
		engine.Connection = proxy.URL(database)
		if err := engine.Provision(caddy.Context{}); err != nil {
			t.Fatal(err)
		}
		a := newTestApp(t, t.TempDir(), "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")
		a.engine = &engine
		if _, err := a.Open(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = a.Cleanup() })
		return a
	}
	running := open(postgres.Postgres{Lease: caddy.Duration(time.Second)})
	nodes := running.issuer.Load().registry.nodes
	server.Exec(t, database, `INSERT INTO client_credentials_nodes (id, applied, polls, lease_ms, host, seen)
		VALUES (gen_random_uuid(), 0, 0, 60000, 'silent', clock_timestamp())`)
	awaits := func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		return nodes.Await(ctx) != nil
	}
	other := postgres.Postgres{Lease: caddy.Duration(time.Minute), OnStale: postgres.OnStaleAccept, RevokeWait: postgres.RevokeWaitNone}

	fails := open(other)
	if !awaits() {
		t.Error("nobody is waited for, as by settings that don't count yet")
	}
	proxy.Cut()
	eventually(t, "the lease runs out", func() bool { return nodes.Stale() != nil })
	proxy.Heal()
	eventually(t, "it serves again", func() bool { return nodes.Stale() == nil })
	if err := fails.Cleanup(); err != nil {
		t.Fatal(err)
	}
	if !awaits() {
		t.Error("nobody is waited for, as by settings that never counted")
	}

	open(other)
	proxy.Cut()
	eventually(t, "the lease runs out once more", func() bool { return nodes.Stale() != nil })
	running.issuer.Load().registry.letGo(running) // as Cleanup does, before it goes to the database
	if err := nodes.Stale(); err != nil || awaits() {
		t.Errorf("the settings of the configuration that runs don't count: %v", err)
	}
	proxy.Heal()
}

// The password may have been changed first, so that nothing works by the one from before.
func TestAConfigurationIsLoadedThatBringsTheNewPassword(t *testing.T) {
	server := testpostgres.Shared(t)
	name := server.NewDatabase(t)
	server.Exec(t, "postgres", "CREATE ROLE "+name+" LOGIN PASSWORD 'first'", "ALTER DATABASE "+name+" OWNER TO "+name)
	open := func(password string) *App {
		t.Helper()
		engine := &postgres.Postgres{Connection: fmt.Sprintf("postgres://%s:%s@127.0.0.1:%d/%s?sslmode=disable", name, password, server.Port, name)}
		if err := engine.Provision(caddy.Context{}); err != nil {
			t.Fatal(err)
		}
		a := newTestApp(t, t.TempDir(), "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")
		a.engine = engine
		if _, err := a.Open(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = a.Cleanup() })
		return a
	}
	before := open("first")
	server.Exec(t, "postgres", "ALTER ROLE "+name+" PASSWORD 'second'",
		"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '"+name+"'")
	after := open("second")
	if err := before.Cleanup(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it serves", func() bool { return after.issuer.Load().Ready() == nil })
	clientWithToken(t, after.issuer.Load())
}

// What could not be kept is no change: the node that has tried it must not take it for
// one, when the others go on as before.
func TestARevocationThatTheDatabaseDidNotTakeCountsOnNoNode(t *testing.T) {
	server := testpostgres.Shared(t)
	database := server.NewDatabase(t)
	nodes := []*Issuer{openNode(t, server.URL(database), time.Hour), openNode(t, server.URL(database), time.Hour)}
	c, _, token := clientWithToken(t, nodes[0])
	server.Exec(t, database, `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$`,
		`CREATE TRIGGER refuse BEFORE INSERT ON client_credentials_changes FOR EACH ROW EXECUTE FUNCTION refuse()`)
	if err := nodes[0].Revoke(t.Context(), "", c.ClientID); err == nil {
		t.Fatal("it is revoked")
	}
	server.Exec(t, database, `DROP TRIGGER refuse ON client_credentials_changes`)
	for n, node := range nodes {
		if err := verified(node, token); err != nil {
			t.Errorf("node %d, its token: %v", n, err)
		}
		if _, err := node.Get(t.Context(), "", c.ClientID); err != nil {
			t.Errorf("node %d, the credential: %v", n, err)
		}
	}
	if err := nodes[0].Revoke(t.Context(), "", c.ClientID); err != nil {
		t.Fatal(err)
	}
	for n, node := range nodes {
		if err := verified(node, token); !isRefusal(err) {
			t.Errorf("node %d, after it was revoked: %v", n, err)
		}
	}
}

// A node that can't ask which keys there are does not know that a token is not good.
func TestATokenOfAKeyThatCannotBeAskedForIsNotRefused(t *testing.T) {
	server := testpostgres.Shared(t)
	database := server.NewDatabase(t)
	proxy := testpostgres.NewProxy(t, server)
	near, far := openNode(t, server.URL(database), time.Hour), openNode(t, proxy.URL(database), time.Hour)
	proxy.Cut()
	if err := near.RevokeKey(t.Context(), near.keys().signing.id); err != nil {
		t.Fatal(err)
	}
	_, _, token := clientWithToken(t, near)
	for range 3 {
		if err := verified(far, token); err == nil || isRefusal(err) {
			t.Errorf("a token of a key that was made meanwhile: %v", err)
		}
	}
	proxy.Heal()
	eventually(t, "it counts", func() bool { return verified(far, token) == nil })
}

// Those who bring tokens of a new key at the same time get the same answer.
func TestManyTokensOfANewKeyCountAtOnce(t *testing.T) {
	nodes := newNodes(t, 2)
	// The second node is not told, but has to ask.
	nodes[1].registry.settling.Lock()
	revoked := make(chan error)
	go func() { revoked <- nodes[0].RevokeKey(context.Background(), nodes[0].keys().signing.id) }()
	before := nodes[1].keys().signing.id
	eventually(t, "another key signs", func() bool { return nodes[0].keys().signing.id != before })
	_, _, token := clientWithToken(t, nodes[0])
	var clients sync.WaitGroup
	for range 20 {
		clients.Go(func() {
			if err := verified(nodes[1], token); err != nil {
				t.Errorf("a token of the new key: %v", err)
			}
		})
	}
	time.Sleep(50 * time.Millisecond) // for most to have come
	nodes[1].registry.settling.Unlock()
	clients.Wait()
	if err := <-revoked; err != nil {
		t.Error(err)
	}
}

// A standby that did not have all commits becomes the primary: what it lacks, each
// node that knew of it writes again.
func TestWhatADatabaseHasForgottenStaysRevoked(t *testing.T) {
	server := testpostgres.Shared(t)
	database := server.NewDatabase(t)
	proxy := testpostgres.NewProxy(t, server)
	both := []*Issuer{openNode(t, proxy.URL(database), time.Hour), openNode(t, server.URL(database), time.Hour)}
	c, _, token := clientWithToken(t, both[0])
	other, _, single := clientWithToken(t, both[0])
	kept, _, good := clientWithToken(t, both[0])
	goBack := saveDatabase(t, server, database)
	if err := both[0].Revoke(t.Context(), "", c.ClientID); err != nil {
		t.Fatal(err)
	}
	if _, err := both[0].RevokeToken(t.Context(), Caller{Credential: other}, single); err != nil {
		t.Fatal(err)
	}
	remembers := func(n *nodes) bool {
		n.ended.mu.Lock()
		defer n.ended.mu.Unlock()
		return len(n.ended.credentials) > 0 && len(n.ended.tokens) > 0
	}
	second := both[1].registry
	if !remembers(second.nodes) {
		t.Error("the revocations were answered, and the other node does not know what they have ended")
	}
	second.nodes.ended = newEndedRights()
	second.Changed([]string{credentialKey(c.ClientID), revokedTokenKey(other.ClientID, tokenID(t, single))}, true)
	if !remembers(second.nodes) {
		t.Fatal("the other node counts as one that has come to the revocations before it knows what they have ended")
	}
	proxy.Cut() // the node that has revoked them is lost, too
	t.Cleanup(proxy.Heal)
	server.Exec(t, database, `BEGIN; `+goBack+`; COMMIT`)
	for _, token := range []string{token, single} {
		if err := verified(both[1], token); !isRefusal(err) {
			t.Errorf("what was revoked: %v", err)
		}
	}
	eventually(t, "it is written again", func() bool {
		written, err := second.store.Get(t.Context(), credentialKey(c.ClientID))
		if err != nil {
			t.Fatal(err)
		}
		stored, err := decodeCredential(written)
		_, tokenErr := second.store.Get(t.Context(), revokedTokenKey(other.ClientID, tokenID(t, single)))
		return err == nil && !stored.Revoked.IsZero() && tokenErr == nil
	})
	if err := verified(both[1], good); err != nil {
		t.Errorf("a token of %s, which was not revoked: %v", kept.ClientID, err)
	}
	fresh := openNode(t, server.URL(database), time.Hour)
	for _, token := range []string{token, single} {
		if err := verified(fresh, token); !isRefusal(err) {
			t.Errorf("a node that has started since: %v", err)
		}
	}
}

// The node that has not heard of it remembers a later state, of the history that is lost.
func TestARevocationAfterAFailoverIsNotUndone(t *testing.T) {
	server := testpostgres.Shared(t)
	database := server.NewDatabase(t)
	proxy := testpostgres.NewProxy(t, server)
	far := openNode(t, proxy.URL(database), time.Hour)
	c, _, token := clientWithToken(t, far)
	goBack := saveDatabase(t, server, database)
	name := "robot"
	for _, p := range []Patch{{Name: named(&name)}, {Enabled: named(false)}} { // the second one ends rights
		if _, err := far.Change(t.Context(), "", c.ClientID, p); err != nil {
			t.Fatal(err)
		}
	}
	proxy.Cut()
	server.Exec(t, database, `BEGIN; `+goBack+`; COMMIT`)
	near := openNode(t, server.URL(database), time.Hour)
	if err := near.Revoke(t.Context(), "", c.ClientID); err != nil {
		t.Fatal(err)
	}
	proxy.Heal()
	eventually(t, "the other node writes again what it remembers", func() bool {
		restores, restored := far.registry.nodes.ended.restoring()
		return restores > 0 && restored == nil
	})
	for name, node := range map[string]*Issuer{"the one that has revoked it": near, "the other one": far} {
		eventually(t, name+" refuses the token", func() bool { return isRefusal(verified(node, token)) })
		if read, err := node.registry.read(t.Context(), c.ClientID); err != nil || read.Revoked.IsZero() {
			t.Errorf("%s: it is not revoked any more, %v", name, err)
		}
	}
	value, err := near.registry.store.Get(t.Context(), credentialKey(c.ClientID))
	if err != nil {
		t.Fatal(err)
	}
	if stored, err := decodeCredential(value); err != nil || stored.Revoked.IsZero() {
		t.Errorf("in the database it is not revoked any more, %v", err)
	}
}

// saveDatabase returns the statements that have the database be again as it is now, in a
// transaction.
func saveDatabase(t *testing.T, server *testpostgres.Server, database string) (goBack string) {
	t.Helper()
	server.Exec(t, database, `CREATE TABLE saved AS TABLE client_credentials_records; CREATE TABLE saved_head AS TABLE client_credentials_head`)
	return `LOCK client_credentials_head; TRUNCATE client_credentials_records;
		INSERT INTO client_credentials_records TABLE saved; UPDATE client_credentials_head SET n = s.n, id = s.id FROM saved_head s;
		DELETE FROM client_credentials_changes c USING saved_head s WHERE c.n > s.n`
}

// It may have been revoked a moment ago, by a call that has failed since, or elsewhere.
func TestWhoFindsItRevokedAlreadyWaitsForTheOtherNodes(t *testing.T) {
	server := testpostgres.Shared(t)
	database := server.NewDatabase(t)
	node := openNode(t, server.URL(database), time.Hour)
	caller, _, token := clientWithToken(t, node)
	gone, _, _ := clientWithToken(t, node)
	nobody := func(context.Context, *Credential) {}
	revokes := map[string]func() error{
		"a token": func() error {
			_, err := node.RevokeToken(t.Context(), Caller{Credential: caller}, token)
			return err
		},
		"a credential": func() error {
			if err := node.Revoke(t.Context(), "", gone.ClientID); !errors.Is(err, ErrNotFound) {
				return err
			}
			return nil
		},
		"an account": func() error {
			_, err := node.RevokeAll(t.Context(), "", Selection{Account: DefaultAccount}, caller.ClientID, nobody)
			return err
		},
	}
	for what, revoke := range revokes {
		if err := revoke(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	server.Exec(t, database, `INSERT INTO client_credentials_nodes (id, applied, polls, lease_ms, host, seen)
		VALUES (gen_random_uuid(), 0, 0, 60000, 'silent', clock_timestamp())`)
	again := make(chan error)
	for what, revoke := range revokes {
		go func() { again <- revoke() }()
		select {
		case err := <-again:
			t.Fatalf("%s: it was answered while a node may not know: %v", what, err)
		case <-time.After(300 * time.Millisecond):
		}
	}
	foreign := make(chan error)
	go func() { foreign <- node.Revoke(t.Context(), "another account", caller.ClientID) }()
	select {
	case err := <-foreign:
		if !errors.Is(err, ErrNotFound) {
			t.Errorf("of another account: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("what is not the caller's is waited for, which tells that it is there")
	}
	server.Exec(t, database, `DELETE FROM client_credentials_nodes WHERE host = 'silent'`)
	for range revokes {
		if err := <-again; err != nil {
			t.Error(err)
		}
	}
}

func TestAKeyThatADatabaseHasForgottenStaysRevoked(t *testing.T) {
	server := testpostgres.Shared(t)
	database := server.NewDatabase(t)
	node := openNode(t, server.URL(database), time.Hour)
	goBack := saveDatabase(t, server, database)
	_, _, token := clientWithToken(t, node)
	revoked := node.keys().signing.id
	if err := node.RevokeKey(t.Context(), revoked); err != nil {
		t.Fatal(err)
	}
	server.Exec(t, database, `BEGIN; `+goBack+`; COMMIT`)
	if err := verified(node, token); !isRefusal(err) {
		t.Errorf("a token of the revoked key: %v", err)
	}
	fresh := openNode(t, server.URL(database), time.Hour)
	eventually(t, "the database knows it again", func() bool {
		records, _, err := readKeyRecords(t.Context(), fresh.store)
		return err == nil && !records[revoked].Revoked.IsZero()
	})
	c, secret, err := node.Create(t.Context(), Draft{})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a key signs that the database knows", func() bool {
		issued, err := node.Issue(t.Context(), tokenRequest(c.ClientID, secret))
		return err == nil && verified(fresh, issued.Token) == nil
	})
}

// The database fails over to a copy without a revocation that was just made, before
// any node but the one that has made it could learn of it. When the call returns, all
// know of it.
func TestARevocationThatIsLostMeanwhileHoldsWhenTheCallReturns(t *testing.T) {
	for name, revoke := range map[string]func(iss *Issuer, c *Credential, token string) error{
		"credential": func(iss *Issuer, c *Credential, _ string) error {
			return iss.Revoke(context.Background(), "", c.ClientID)
		},
		"token": func(iss *Issuer, c *Credential, token string) error {
			_, err := iss.RevokeToken(context.Background(), Caller{Credential: c}, token)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := testpostgres.Shared(t)
			database := server.NewDatabase(t)
			nodes := []*Issuer{openNode(t, server.URL(database), time.Hour), openNode(t, server.URL(database), time.Hour)}
			c, _, token := clientWithToken(t, nodes[0])
			goBack := saveDatabase(t, server, database)
			conn := server.Connect(t, database)
			exec := func(statement string) {
				t.Helper()
				if _, err := conn.Exec(t.Context(), statement); err != nil {
					t.Fatal(err)
				}
			}
			exec(`BEGIN; LOCK TABLE client_credentials_nodes IN EXCLUSIVE MODE`) // no node can poll
			revoked := make(chan error)
			go func() { revoked <- revoke(nodes[0], c, token) }()
			eventually(t, "it is committed", func() bool {
				var committed bool
				err := conn.QueryRow(t.Context(), `SELECT h.n > s.n FROM client_credentials_head h, saved_head s`).Scan(&committed)
				return err == nil && committed
			})
			exec(goBack + `; COMMIT`)
			if err := <-revoked; err != nil {
				t.Fatal(err)
			}
			for n, node := range nodes {
				if err := verified(node, token); !isRefusal(err) {
					t.Errorf("node %d, after it was revoked: %v", n, err)
				}
			}
		})
	}
}

func tokenID(t *testing.T, token string) string {
	t.Helper()
	jws, err := parseCompact(token)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := parseClaims(jws.payload)
	if err != nil {
		t.Fatal(err)
	}
	return claims.id
}

// Nobody on another node remembers when a credential was used last: it is read.
func TestLastUsesAreToldToNobody(t *testing.T) {
	server := testpostgres.Shared(t)
	name := server.NewDatabase(t)
	one, two := openNode(t, server.URL(name), time.Hour), openNode(t, server.URL(name), time.Hour)
	c, secret, err := one.Create(t.Context(), Draft{})
	if err != nil {
		t.Fatal(err)
	}
	useSecret(t, one, c.ClientID, secret)
	if err := one.registry.flushUses(t.Context()); err != nil {
		t.Fatal(err)
	}
	if lastUse(t, two, c).At.IsZero() {
		t.Error("another node can't tell that it was used")
	}
	var told int
	err = server.Connect(t, name).QueryRow(t.Context(), `SELECT count(*) FROM client_credentials_changes, unnest(keys) key
		WHERE convert_from(key, 'UTF8') LIKE 'used/%'`).Scan(&told)
	if err != nil || told != 0 {
		t.Errorf("%d records of uses are told of, %v", told, err)
	}
}
