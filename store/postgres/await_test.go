package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/internal/testpostgres"
)

func longLease(p *Postgres) { p.Lease = caddy.Duration(time.Minute) }

func nodes(t *testing.T, db *database) int {
	t.Helper()
	v, err := db.look(t.Context(), position{})
	if err != nil {
		t.Fatal(err)
	}
	return len(v.others)
}

// With leases of a minute, it is not by one that has run out that Await returns.
func TestAwaitReturnsWhenAllHaveAppliedIt(t *testing.T) {
	url := newURL(t)
	one, _ := join(t, url, longLease)
	var told []*follower
	for range 3 {
		_, f := join(t, url, longLease)
		told = append(told, f)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	for n := range 20 {
		put(t, one, "k", "1")
		if err := one.Await(ctx); err != nil {
			t.Fatal(err)
		}
		for _, f := range told {
			if got := f.heard(); len(got) != n+1 {
				t.Fatalf("after the commit and Await number %d a node was told %q", n+1, got)
			}
		}
	}
}

// What another has committed counts, too: who finds the work done must not answer
// before the other could.
func TestAwaitWaitsForWhatAnotherHasCommitted(t *testing.T) {
	url := newURL(t)
	one, _ := join(t, url, longLease)
	two, _ := join(t, url, longLease)
	third := open(t, url, longLease)
	slow := &waitingFollower{release: make(chan struct{})}
	if err := third.Follow(t.Context(), slow); err != nil {
		t.Fatal(err)
	}
	put(t, one, "k", "1")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := two.Await(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Await = %v, while a node has not applied it", err)
	}
	close(slow.release)
	if err := two.Await(t.Context()); err != nil || !slices.Equal(slow.heard(), []string{"k"}) {
		t.Errorf("Await = %v, and the node was told %q", err, slow.heard())
	}
}

func TestAwaitWaitsForTheLeaseOfANodeThatIsCutOff(t *testing.T) {
	server := testpostgres.Shared(t)
	name := server.NewDatabase(t)
	proxy := testpostgres.NewProxy(t, server)
	one, _ := join(t, server.URL(name), longLease)
	_, live := join(t, server.URL(name), longLease)
	cut, told := join(t, proxy.URL(name), func(p *Postgres) { p.Lease = caddy.Duration(3 * time.Second) })
	eventually(t, "it has said what it knows", func() bool { return cut.Stale() == nil })
	proxy.Cut()
	put(t, one, "k", "1")
	for cut.Stale() == nil { // it may serve by what it knows
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		err := one.Await(ctx)
		stale := cut.Stale()
		cancel()
		if err == nil && stale == nil {
			t.Fatal("Await has returned while a node serves that does not know")
		}
	}
	if err := one.Await(t.Context()); err != nil {
		t.Fatal(err)
	}
	if cut.Stale() == nil || len(told.heard()) != 0 || !slices.Equal(live.heard(), []string{"k"}) {
		t.Errorf("Await has returned: %v, %q, %q", cut.Stale(), told.heard(), live.heard())
	}
	if n := nodes(t, one); n != 1 {
		t.Errorf("there are rows of %d other nodes, want 1", n)
	}
	proxy.Heal()
	eventually(t, "it serves again", func() bool { return cut.Stale() == nil })
	if got := told.heard(); !slices.Equal(got, []string{"k"}) {
		t.Errorf("it serves, and was told %q", got)
	}
	if n := nodes(t, one); n != 2 {
		t.Errorf("there are rows of %d other nodes, want 2", n)
	}
}

func TestAwaitForgetsANodeThatWasKilled(t *testing.T) {
	url := newURL(t)
	one, _ := join(t, url, longLease)
	killed, _ := join(t, url)
	// Nothing of it runs any more, and its row is there.
	killed.feed.stop()
	killed.feed.done.Wait()
	put(t, one, "k", "1")
	if err := one.Await(t.Context()); err != nil {
		t.Fatal(err)
	}
	if killed.Stale() == nil {
		t.Error("Await has returned before the lease has run out")
	}
	if n := nodes(t, one); n != 0 {
		t.Errorf("there are rows of %d other nodes, want none", n)
	}
}

func TestANodeThatCloseLeavesNoRow(t *testing.T) {
	url := newURL(t)
	one, _ := join(t, url, longLease)
	two, _ := join(t, url, longLease)
	if n := nodes(t, one); n != 1 {
		t.Errorf("there are rows of %d other nodes, want 1", n)
	}
	if err := two.Close(); err != nil {
		t.Fatal(err)
	}
	if n := nodes(t, one); n != 0 {
		t.Errorf("there are rows of %d other nodes, want none", n)
	}
}

func TestWithRevokeWaitNoneNobodyIsWaitedFor(t *testing.T) {
	url := newURL(t)
	one, _ := join(t, url, func(p *Postgres) { p.RevokeWait = RevokeWaitNone })
	two := open(t, url, longLease)
	slow := &waitingFollower{release: make(chan struct{})}
	if err := two.Follow(t.Context(), slow); err != nil {
		t.Fatal(err)
	}
	put(t, one, "k", "1")
	if err := one.Await(t.Context()); err != nil || len(slow.heard()) != 0 {
		t.Errorf("Await = %v, and the other node was told %q", err, slow.heard())
	}
	close(slow.release)
}

// A failover to an asynchronous replica has lost commits, and numbers begin anew. A node
// has applied more of the lost ones than there are now, and is about to learn of that.
func TestAwaitIsNotMisledByWhatANodeHasAppliedOfALostHistory(t *testing.T) {
	server := testpostgres.Shared(t)
	name := server.NewDatabase(t)
	one, told := join(t, server.URL(name), longLease)
	two, slow := open(t, server.URL(name), longLease), &losingFollower{release: make(chan struct{})}
	if err := two.Follow(t.Context(), slow); err != nil {
		t.Fatal(err)
	}
	goBack := saveHistory(t, server, name)
	put(t, one, "a", "1")
	put(t, one, "b", "1")
	if err := one.Await(t.Context()); err != nil {
		t.Fatal(err)
	}
	server.Exec(t, name, goBack)
	one.feed.comeTo()
	two.feed.comeTo()
	eventually(t, "one node knows", func() bool { return len(told.heard()) == 3 })
	eventually(t, "the other one is about to", slow.waits.Load)
	put(t, one, "c", "1")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := one.Await(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Await = %v, while a node has not applied it", err)
	}
	close(slow.release)
	if err := one.Await(t.Context()); err != nil || !slices.Equal(slow.heard(), []string{"a", "b", "anything, lost: true", "c"}) {
		t.Errorf("Await = %v, and the node was told %q", err, slow.heard())
	}
}

// The feed has come to the commit, and then the database has lost it.
func TestAwaitOfALostCommitReturnsWhenTheFollowerKnows(t *testing.T) {
	for after, want := range map[int]string{0: "older", 1: "as old", 3: "ahead"} {
		t.Run(want, func(t *testing.T) {
			server := testpostgres.Shared(t)
			name := server.NewDatabase(t)
			db, told := open(t, server.URL(name), longLease), &losingFollower{release: make(chan struct{})}
			if err := db.Follow(t.Context(), told); err != nil {
				t.Fatal(err)
			}
			other := open(t, server.URL(name))
			goBack := saveHistory(t, server, name)
			put(t, db, "a", "1")
			eventually(t, "the feed has come to it", func() bool { return len(db.feed.expected()) == 0 })
			server.Exec(t, name, goBack)
			for range after {
				put(t, other, "b", "1")
			}
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if err := db.Await(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Await = %v, before the follower knows of the loss", err)
			}
			close(told.release)
			if err := db.Await(t.Context()); err != nil {
				t.Error(err)
			}
			if got := told.heard(); len(got) < 2 || got[1] != "anything, lost: true" {
				t.Errorf("when it was waited, it had been told %q", got)
			}
		})
	}
}

// What a node has committed long ago is trimmed, and it waits for what another has.
func TestAwaitDoesNotAskForWhatIsTrimmed(t *testing.T) {
	url := newURL(t)
	one, told := join(t, url, longLease)
	two, _ := join(t, url, longLease)
	put(t, one, "a", "1")
	put(t, two, "b", "1")
	eventually(t, "the feed has come to both", func() bool { return len(told.heard()) == 2 })
	if err := two.feed.trim(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := one.Await(ctx); err != nil {
		t.Error(err)
	}
}

// The database fails while Await waits for a node that does not know the commit, is away
// for longer than the lease of that, and comes back without the commit.
func TestAwaitDoesNotCountALeaseThatRunsOutWhileTheDatabaseIsAway(t *testing.T) {
	server := testpostgres.Shared(t)
	name := server.NewDatabase(t)
	proxy := testpostgres.NewProxy(t, server)
	one, told := join(t, proxy.URL(name), longLease)
	two, slow := open(t, server.URL(name)), &waitingFollower{release: make(chan struct{})}
	if err := two.Follow(t.Context(), slow); err != nil {
		t.Fatal(err)
	}
	goBack := saveHistory(t, server, name)
	put(t, one, "a", "1")
	eventually(t, "its own feed has come to it", func() bool { return len(one.feed.expected()) == 0 })
	awaited := make(chan error)
	go func() { awaited <- one.Await(context.Background()) }()
	eventually(t, "the other one is about to", slow.waits.Load)
	time.Sleep(50 * time.Millisecond) // it has looked
	proxy.Cut()
	server.Exec(t, name, goBack)
	select {
	case err := <-awaited:
		t.Errorf("Await = %v, while the database was away", err)
	case <-time.After(patience + time.Duration(two.feed.lease.Load()) + time.Second): // a look, and the lease
	}
	proxy.Heal()
	close(slow.release)
	if err := <-awaited; err != nil {
		t.Error(err)
	}
	if got := told.heard(); !slices.Equal(got, []string{"a", "anything, lost: true"}) {
		t.Errorf("when it was waited, it had been told %q", got)
	}
}

// losingFollower takes its time when it is told of a loss.
type losingFollower struct {
	follower
	waits   atomic.Bool
	release chan struct{}
}

func (f *losingFollower) ChangedAnything(lost bool) {
	f.waits.Store(true)
	<-f.release
	f.follower.ChangedAnything(lost)
}

// saveHistory returns the statements that have the database forget what is committed
// from now on.
func saveHistory(t *testing.T, server *testpostgres.Server, name string) (goBack string) {
	t.Helper()
	server.Exec(t, name, `CREATE TABLE saved_head AS TABLE client_credentials_head`)
	return `BEGIN; LOCK client_credentials_head; UPDATE client_credentials_head SET n = s.n, id = s.id FROM saved_head s;
		DELETE FROM client_credentials_changes c USING saved_head s WHERE c.n > s.n; COMMIT`
}

// A poll that finds no row does not let the node serve: an Await may just have
// read the rows.
func TestAPollWithoutARowDoesNotCount(t *testing.T) {
	url := newURL(t)
	db := open(t, url)
	db.feed.follower = new(follower)
	for n, counts := range []bool{false, true, true} {
		before := db.feed.until.Load()
		if _, err := db.feed.poll(t.Context()); err != nil {
			t.Fatal(err)
		}
		if counted := db.feed.until.Load() != before; counted != counts {
			t.Errorf("poll %d counts: %t", n, counted)
		}
	}
	if _, err := db.pool.Exec(t.Context(), `DELETE FROM client_credentials_nodes`); err != nil {
		t.Fatal(err)
	}
	for n, counts := range []bool{false, true} {
		before := db.feed.until.Load()
		if _, err := db.feed.poll(t.Context()); err != nil {
			t.Fatal(err)
		}
		if counted := db.feed.until.Load() != before; counted != counts {
			t.Errorf("after the row was deleted, poll %d counts: %t", n, counted)
		}
	}
}

// The database may carry out a poll that was given up after those that came later.
func TestAPollThatComesLateWritesNothing(t *testing.T) {
	url := newURL(t)
	db := open(t, url)
	db.feed.follower = new(follower)
	for range 3 {
		if _, err := db.feed.poll(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	db.feed.polls -= 2 // which it raises by one
	a, err := db.feed.ask(t.Context(), time.Hour)
	if err != nil || a.registered {
		t.Errorf("it counts: %t, %v", a.registered, err)
	}
	v, err := open(t, url).look(t.Context(), position{})
	if row := v.others[db.feed.node]; err != nil || row.polls != 3 || row.lease != time.Second {
		t.Errorf("it has written %+v, %v", row, err)
	}
}

// The row of a node that has polled since it was read stays.
func TestForgettingNeedsTheSameCountOfPolls(t *testing.T) {
	url := newURL(t)
	one, _ := join(t, url)
	two := open(t, url, longLease)
	two.feed.follower = new(follower)
	poll := func() {
		if _, err := two.feed.poll(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	poll()
	poll()
	read, err := one.look(t.Context(), position{})
	if err != nil {
		t.Fatal(err)
	}
	poll()
	one.forget(t.Context(), read.others)
	if n := nodes(t, one); n != 1 {
		t.Errorf("the row of a node that lives was deleted")
	}
	read, _ = one.look(t.Context(), position{})
	one.forget(t.Context(), read.others)
	if n := nodes(t, one); n != 0 {
		t.Errorf("the row of a node that is silent was left")
	}
}

func BenchmarkCommitAndAwait(b *testing.B) {
	for _, others := range []int{0, 1, 3} {
		b.Run(fmt.Sprintf("others=%d", others), func(b *testing.B) {
			url := newURL(b)
			one, _ := join(b, url)
			for range others {
				join(b, url)
			}
			for b.Loop() {
				put(b, one, "k", "1")
				if err := one.Await(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
