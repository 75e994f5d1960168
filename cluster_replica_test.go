package clientcredentials_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/testpostgres"
)

// replicated is a cluster whose database has a replica.
type replicated struct {
	*cluster
	replica  *testpostgres.Server
	link     *testpostgres.Proxy // between the two
	database string
	url      string // of both
}

func startReplicated(t *testing.T, synchronous bool) *replicated {
	t.Helper()
	primary := testpostgres.Start(t, "wal_retrieve_retry_interval = 100ms") // which delays a promotion
	r := &replicated{database: primary.NewDatabase(t)}
	r.replica, r.link = primary.Replica(t, synchronous)
	r.url = fmt.Sprintf("postgres://caddy:%s@127.0.0.1:%d,127.0.0.1:%d/%s?sslmode=disable&target_session_attrs=read-write",
		primary.Password, primary.Port, r.replica.Port, r.database)
	r.cluster = startNodes(t, func(int) string { return r.url })
	r.postgres = primary
	return r
}

// failOver kills the primary, promotes the replica, and waits until all nodes take
// changes and serve a good token.
func (r *replicated) failOver(t *testing.T, good string) {
	t.Helper()
	r.postgres.Kill()
	killed := time.Now()
	r.replica.Promote(t)
	promoted := time.Now()
	var changed, served time.Duration
	for _, n := range r.nodes {
		changed = max(changed, until(t, promoted, 201, n.name+" takes a change", func() (answer, error) {
			header := bearer(r.manager)
			header.Set("Content-Type", "application/json")
			return n.send("POST", credentialsPath, "{}", header)
		}))
		served = max(served, until(t, promoted, 200, n.name+" serves", func() (answer, error) { return n.call(good) }))
	}
	t.Logf("the replica was promoted %v after the kill; after that, all nodes took changes %v, and served %v", promoted.Sub(killed), changed, served)
}

// With synchronous replication, what was acknowledged is on the replica's disk: a
// failover loses no credential and no revocation. (A request that was answered with
// an error, or not at all, may have been carried out or not.)
func TestAFailoverToASynchronousReplicaLosesNothing(t *testing.T) {
	r := startReplicated(t, true)
	kept := r.create(t, r.nodes[0])
	good := r.nodes[0].token(t, kept)
	l := newLoad(t)
	for _, n := range r.nodes {
		l.keep("calls to "+n.name, []int{200, 503}, func() (answer, error) { return n.call(good) })
	}
	all := newAcknowledged()
	var clients sync.WaitGroup
	for _, n := range r.nodes {
		for range 2 {
			clients.Go(func() { all.work(n.Server, r.manager) })
		}
	}
	for all.count() < 30 && !t.Failed() {
		time.Sleep(time.Millisecond)
	}
	r.failOver(t, good)
	all.ended.Store(true)
	clients.Wait()
	for _, n := range r.nodes {
		all.check(t, n.Server, r.manager)
	}
	l.end(t)
	t.Logf("%d credentials created and %d of them revoked: none is lost", len(all.created), len(all.revoked))
}

// With asynchronous replication, what was acknowledged last may be lost with the
// primary. What was created is: its tokens are refused from then on. What was revoked
// is not, while a node lives that knew of it: the node finds that the database went
// back, goes on refusing, and writes it again. Nodes that start later hold to it then.
// For as long as that takes, tokens may be let through by nodes that have just started.
// What no node knows any more, as all were started anew meanwhile, is lost.
func TestAFailoverToAnAsynchronousReplicaForgetsNoRevocation(t *testing.T) {
	r := startReplicated(t, false)
	one := r.nodes[0]
	kept, gone := r.create(t, one), r.create(t, one)
	good, revoked := one.token(t, kept), one.token(t, gone)
	tokens := r.tokensToRevoke(t)
	r.postgres.CatchUp(t, r.replica)
	r.link.Cut()
	want(t, 204, "revoking")(one.revoke(r.manager, gone.ClientID))
	late := one.token(t, r.create(t, one))
	for _, n := range r.nodes {
		want(t, 401, "revoked, on "+n.name)(n.call(revoked))
		want(t, 200, "created after the network was cut, on "+n.name)(n.call(late))
	}

	l := newLoad(t)
	for _, n := range r.nodes {
		l.keep("good calls to "+n.name, []int{200, 503}, func() (answer, error) { return n.call(good) })
		l.keep("revoked calls to "+n.name, []int{401, 503}, func() (answer, error) { return n.call(revoked) })
	}
	all := r.revokeMany(l, tokens, r.nodes[:]...)
	for len(all.answered(204)) < 10 && !t.Failed() {
		time.Sleep(time.Millisecond)
	}
	r.failOver(t, good)
	back := time.Now()
	all.clients.Wait()
	r.refused(t, all, all.answered(204)...)
	written := func() bool {
		for _, n := range r.nodes {
			if strings.Contains(n.Log(t), "wrote again what has ended rights") {
				return true
			}
		}
		return false
	}
	for !written() {
		if time.Since(back) > 30*time.Second {
			t.Fatal("no node has written again what has ended rights")
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Logf("what was revoked was written again %v after all nodes served, at most; %d revocations were answered with 204, and %d with 503",
		time.Since(back), len(all.answered(204)), len(all.answered(503)))
	for _, n := range r.nodes {
		until(t, back, 401, "lost by the failover, on "+n.name, func() (answer, error) { return n.call(late) })
	}
	fourth := newNode(t, "a node that starts after the failover", r.url)
	fourth.Start(t, fourth.site)
	want(t, 401, "revoked, on "+fourth.name)(fourth.call(revoked))
	for _, id := range all.answered(204) {
		want(t, 401, "revoked meanwhile, on "+fourth.name)(fourth.call(tokens[id]))
	}
	want(t, 200, "good, on "+fourth.name)(fourth.call(good))
	l.end(t)
}
