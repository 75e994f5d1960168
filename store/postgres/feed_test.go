package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/jackc/pgx/v5"

	"github.com/clientcredentials/caddy-client-credentials/internal/testpostgres"
	"github.com/clientcredentials/caddy-client-credentials/store"
)

func TestANodeIsToldWhatAnotherCommits(t *testing.T) {
	url := newURL(t)
	one, toldOne := join(t, url)
	put(t, one, "before", "1")
	eventually(t, "the first node is told of its own commit", func() bool {
		return slices.Equal(toldOne.heard(), []string{"before"})
	})
	two, toldTwo := join(t, url)
	if got := toldTwo.heard(); len(got) != 0 {
		t.Errorf("the second node was told %q, of which it remembers nothing", got)
	}
	put(t, one, "b", "1", "a", "1")
	if err := two.Commit(t.Context(), store.Batch{Deletes: []string{"a", "k\x00\xff"}}); err != nil {
		t.Fatal(err)
	}
	if err := two.Commit(t.Context(), store.Batch{Conditions: []store.Condition{{Key: "b"}}, Deletes: []string{"b"}}); !errors.Is(err, store.ErrConflict) {
		t.Fatal(err)
	}
	want := []string{"a,b", "a,k\x00\xff"}
	for told, want := range map[*follower][]string{toldOne: append([]string{"before"}, want...), toldTwo: want} {
		eventually(t, "both are told", func() bool { return len(told.heard()) >= len(want) })
		if got := told.heard(); !slices.Equal(got, want) {
			t.Errorf("a node was told %q, want %q", got, want)
		}
	}
}

func TestWithoutNotificationsANodeIsToldJustTheSame(t *testing.T) {
	url := newURL(t)
	one, two := open(t, url), open(t, url)
	one.features.notify = false
	two.feed.features.notify = false
	told := new(follower)
	if err := two.Follow(t.Context(), told); err != nil {
		t.Fatal(err)
	}
	put(t, one, "k", "1")
	eventually(t, "the node is told", func() bool { return slices.Equal(told.heard(), []string{"k"}) })
}

// Every node is told all, and in the order of the commits, with no gap: also when
// it learns of more than one poll can tell.
func TestAllAreToldAllInOrder(t *testing.T) {
	url := newURL(t)
	slow := open(t, url)
	var dbs []*database
	var told []*follower
	for range 3 {
		db, f := join(t, url)
		dbs, told = append(dbs, db), append(told, f)
	}
	release := make(chan struct{})
	late := &waitingFollower{release: release}
	if err := slow.Follow(t.Context(), late); err != nil {
		t.Fatal(err)
	}
	const each = maxChanges
	var writers sync.WaitGroup
	for n, db := range dbs {
		writers.Go(func() {
			for m := range each {
				if err := db.Commit(context.Background(), store.Batch{Puts: records(fmt.Sprintf("%d/%d", n, m), "")}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	writers.Wait()
	close(release)
	told = append(told, &late.follower)
	for _, f := range told {
		eventually(t, "a node is told all", func() bool { return len(f.heard()) >= len(dbs)*each })
		got := f.heard()
		if !slices.Equal(got, told[0].heard()) {
			t.Error("two nodes were told different things")
		}
		next := make([]int, len(dbs))
		for _, key := range got {
			var n, m int
			fmt.Sscanf(key, "%d/%d", &n, &m)
			if m != next[n] {
				t.Fatalf("%s was told when %d/%d was due", key, n, next[n])
			}
			next[n]++
		}
	}
}

// A node that has applied a part of what it was told is not up to date.
func TestAPollThatDoesNotTellAllDoesNotCount(t *testing.T) {
	url := newURL(t)
	one, two := open(t, url), open(t, url)
	told := new(follower)
	two.feed.follower = told
	poll := func() (counts bool) {
		before := two.feed.until.Load()
		if _, err := two.feed.poll(t.Context()); err != nil {
			t.Fatal(err)
		}
		return two.feed.until.Load() != before
	}
	poll()
	poll()
	for range maxChanges + 1 {
		put(t, one, "k", "1")
	}
	if poll() || len(told.heard()) != maxChanges {
		t.Errorf("a poll counts that told of %d commits of %d", len(told.heard()), maxChanges+1)
	}
	if !poll() || len(told.heard()) != maxChanges+1 {
		t.Errorf("the next poll does not count, and %d commits were told", len(told.heard()))
	}
}

// waitingFollower takes its time over the first change.
type waitingFollower struct {
	follower
	waits   atomic.Bool
	release chan struct{}
}

func (f *waitingFollower) Changed(keys []string, urgent bool) {
	f.waits.Store(true)
	<-f.release
	f.follower.Changed(keys, urgent)
}

func TestANodeThatMissedWhatIsTrimmedReadsAllAnew(t *testing.T) {
	server := testpostgres.Shared(t)
	name := server.NewDatabase(t)
	proxy := testpostgres.NewProxy(t, server)
	one := open(t, server.URL(name))
	cut, told := join(t, proxy.URL(name))
	put(t, one, "a", "1")
	eventually(t, "it is told", func() bool { return slices.Equal(told.heard(), []string{"a"}) })
	proxy.Cut()
	eventually(t, "it is stale", func() bool { return cut.Stale() != nil })
	for range maxChanges + 10 {
		put(t, one, "b", "2")
	}
	if err := one.feed.trim(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	left := 0
	if err := server.Connect(t, name).QueryRow(t.Context(), `SELECT count(*) FROM client_credentials_changes`).Scan(&left); err != nil || left != 1 {
		t.Errorf("%d changes are left, %v, want the last one", left, err)
	}
	proxy.Heal()
	eventually(t, "it is told", func() bool { return len(told.heard()) > 1 })
	put(t, one, "c", "3")
	eventually(t, "it is told of what follows", func() bool { return len(told.heard()) > 2 })
	if got, want := told.heard(), []string{"a", "anything, lost: false", "c"}; !slices.Equal(got, want) {
		t.Errorf("it was told %q, want %q", got, want)
	}
}

func TestTrimmingKeepsWhatIsNotOld(t *testing.T) {
	db := open(t, newURL(t))
	for range 3 {
		put(t, db, "k", "1")
	}
	if err := db.feed.trim(t.Context(), history); err != nil {
		t.Fatal(err)
	}
	left := 0
	if err := db.pool.QueryRow(t.Context(), `SELECT count(*) FROM client_credentials_changes`).Scan(&left); err != nil || left != 4 {
		t.Errorf("%d changes are left, %v, want 4", left, err)
	}
}

// A copy that is older, or as old with other commits, or has gone on from an
// older one: each loses what the node was told.
func TestADatabaseReplacedByAnotherCopyIsNoticed(t *testing.T) {
	for after, want := range map[int]string{0: "older", 1: "as old", 3: "ahead"} {
		t.Run(want, func(t *testing.T) {
			server := testpostgres.Shared(t)
			name := server.NewDatabase(t)
			db, told := join(t, server.URL(name))
			put(t, db, "a", "1")
			eventually(t, "it is told", func() bool { return len(told.heard()) == 1 })
			swap := func(statements ...string) {
				terminate := `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '` + name + `'`
				forbid, allow := `ALTER DATABASE `+name+` ALLOW_CONNECTIONS false`, `ALTER DATABASE `+name+` ALLOW_CONNECTIONS true`
				server.Exec(t, "postgres", forbid, terminate)
				eventually(t, "all have left", func() bool {
					n := 0
					err := server.Connect(t, "postgres").QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = $1`, name).Scan(&n)
					return err == nil && n == 0
				})
				server.Exec(t, "postgres", statements...)
				server.Exec(t, "postgres", allow)
			}
			swap(`CREATE DATABASE ` + name + `_copy TEMPLATE ` + name)
			eventually(t, "it serves again", func() bool { return db.Stale() == nil })
			put(t, db, "b", "2")
			eventually(t, "it is told", func() bool { return len(told.heard()) == 2 })
			other := open(t, server.URL(name+"_copy"))
			for range after {
				put(t, other, "c", "3")
			}
			if err := other.Close(); err != nil {
				t.Fatal(err)
			}
			swap(`ALTER DATABASE `+name+` RENAME TO `+name+`_old`, `ALTER DATABASE `+name+`_copy RENAME TO `+name,
				`ALTER DATABASE `+name+`_old ALLOW_CONNECTIONS false`)
			eventually(t, "it is told", func() bool { return len(told.heard()) > 2 })
			put(t, db, "d", "4")
			eventually(t, "it is told of what follows", func() bool { return len(told.heard()) > 3 })
			if got, want := told.heard(), []string{"a", "b", "anything, lost: true", "d"}; !slices.Equal(got, want) {
				t.Errorf("it was told %q, want %q", got, want)
			}
		})
	}
}

// A failover comes just after a commit was acknowledged, before the feed has come to it.
func TestALostCommitThatTheFeedHasNotSeenIsNoticed(t *testing.T) {
	for after, want := range map[int]string{0: "older", 1: "as old", 3: "ahead"} {
		t.Run(want, func(t *testing.T) {
			server := testpostgres.Shared(t)
			name := server.NewDatabase(t)
			url := server.URL(name)
			other := open(t, url)
			db, told := open(t, url), &waitingFollower{release: make(chan struct{})}
			if err := db.Follow(t.Context(), told); err != nil {
				t.Fatal(err)
			}
			put(t, other, "a", "1")
			eventually(t, "the feed waits over it", told.waits.Load)
			goBack := saveHistory(t, server, name)
			put(t, db, "b", "2")
			awaited := make(chan error)
			go func() { awaited <- db.Await(context.Background()) }()
			server.Exec(t, name, goBack)
			for range after {
				put(t, other, "c", "3")
			}
			select {
			case err := <-awaited:
				t.Fatalf("it was waited for what is lost: %v", err)
			case <-time.After(100 * time.Millisecond):
			}
			close(told.release)
			if err := <-awaited; err != nil {
				t.Fatal(err)
			}
			if got, want := told.heard(), []string{"a", "anything, lost: true"}; !slices.Equal(got, want) {
				t.Errorf("when it was waited, it had been told %q, want %q", got, want)
			}
			put(t, db, "d", "4")
			eventually(t, "it is told of what follows", func() bool { return len(told.heard()) > 2 })
			if got, want := told.heard(), []string{"a", "anything, lost: true", "d"}; !slices.Equal(got, want) {
				t.Errorf("it was told %q, want %q", got, want)
			}
		})
	}
}

func TestANodeThatIsCutOffIsStaleAndServesAgain(t *testing.T) {
	server := testpostgres.Shared(t)
	name := server.NewDatabase(t)
	proxy := testpostgres.NewProxy(t, server)
	whole, _ := join(t, server.URL(name))
	cut, told := join(t, proxy.URL(name))
	accepting, _ := join(t, proxy.URL(name), func(p *Postgres) { p.OnStale = OnStaleAccept })
	for range 2 {
		eventually(t, "it serves", func() bool { return cut.Stale() == nil })
		proxy.Cut()
		eventually(t, "it is stale", func() bool { return cut.Stale() != nil })
		if err := cut.Stale(); !errors.Is(err, store.ErrStale) {
			t.Errorf("Stale = %v, want ErrStale", err)
		}
		before := len(told.heard())
		put(t, whole, "k", "1")
		if _, err := cut.Get(t.Context(), "k"); err == nil {
			t.Error("a read has reached the database")
		}
		if cut.Stale() == nil || len(told.heard()) != before {
			t.Error("it serves while it is cut off")
		}
		if err := accepting.Stale(); err != nil {
			t.Errorf("a node that accepts what it knew: %v", err)
		}
		proxy.Heal()
		eventually(t, "it serves again", func() bool { return cut.Stale() == nil })
		if got := told.heard(); len(got) != before+1 { // no later than it serves
			t.Errorf("it serves and was told %q", got)
		}
		if value, err := cut.Get(t.Context(), "k"); err != nil || string(value) != "1" {
			t.Errorf("Get = %q, %v", value, err)
		}
	}
}

func TestAKilledServerHasLostNothingAndNodesGoOn(t *testing.T) {
	server := testpostgres.Start(t)
	name := server.NewDatabase(t)
	one, told := join(t, server.URL(name))
	two, _ := join(t, server.URL(name))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var mu sync.Mutex
	var acknowledged []string
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(acknowledged)
	}
	var writers sync.WaitGroup
	for n, db := range []*database{one, two} {
		for m := range 2 {
			writers.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					key := fmt.Sprintf("%d/%d/%d", n, m, i)
					if err := db.Commit(context.Background(), store.Batch{Puts: records(key, key)}); err == nil {
						mu.Lock()
						acknowledged = append(acknowledged, key)
						mu.Unlock()
					} else if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrFull) {
						t.Errorf("Commit = %v", err)
					}
				}
			})
		}
	}
	for range 3 {
		before := count()
		eventually(t, "commits", func() bool { return count() > before+50 })
		server.Kill()
		eventually(t, "they are stale", func() bool { return one.Stale() != nil && two.Stale() != nil })
		server.Restart(t)
		eventually(t, "they serve again", func() bool { return one.Stale() == nil && two.Stale() == nil })
	}
	stop()
	writers.Wait()
	for _, key := range acknowledged {
		if value, err := one.Get(t.Context(), key); err != nil || string(value) != key {
			t.Errorf("%s was acknowledged: Get = %q, %v", key, value, err)
		}
	}
	eventually(t, "all is told", func() bool { return slices.Contains(told.heard(), acknowledged[len(acknowledged)-1]) })
	all := told.heard()
	for _, key := range acknowledged {
		if !slices.Contains(all, key) {
			t.Errorf("%s was acknowledged and not told", key)
		}
	}
	if slices.Contains(all, "anything, lost: true") || slices.Contains(all, "anything, lost: false") {
		t.Error("a crash was taken for a loss")
	}
}

// What ends the connection of the feed alone must not make the node stale.
func TestALostConnectionIsMadeAnew(t *testing.T) {
	server := testpostgres.Shared(t)
	name := server.NewDatabase(t)
	db, told := join(t, server.URL(name), func(p *Postgres) { p.Lease = caddy.Duration(30 * time.Second) })
	terminate := `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`
	for n := range 3 {
		server.Exec(t, name, terminate)
		put(t, db, "k", "1") // with a connection of the pool that has ended, too
		eventually(t, "it is told", func() bool { return len(told.heard()) == n+1 })
		if err := db.Stale(); err != nil {
			t.Error(err)
		}
	}
}

func TestAPanicOfTheFollowerMakesTheNodeStaleAndNoMore(t *testing.T) {
	db := open(t, newURL(t))
	f := &panickingFollower{panics: make(chan bool, 1000)}
	if err := db.Follow(t.Context(), f); err != nil {
		t.Fatal(err)
	}
	for range 6 {
		f.panics <- true
	}
	put(t, db, "k", "1")
	eventually(t, "it is stale", func() bool { return db.Stale() != nil })
	eventually(t, "it serves again", func() bool { return db.Stale() == nil })
	if got := f.heard(); !slices.Equal(got, []string{"k"}) {
		t.Errorf("it was told %q", got)
	}
}

type panickingFollower struct {
	follower
	panics chan bool
}

func (f *panickingFollower) Changed(keys []string, urgent bool) {
	select {
	case <-f.panics:
		panic("for the test")
	default:
		f.follower.Changed(keys, urgent)
	}
}

func TestStaleCostsNoAllocation(t *testing.T) {
	db, _ := join(t, newURL(t), func(p *Postgres) { p.Lease = caddy.Duration(time.Minute) })
	if n := testing.AllocsPerRun(1000, func() {
		if err := db.Stale(); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("Stale allocates %v times", n)
	}
}

func BenchmarkStale(b *testing.B) {
	db, _ := join(b, newURL(b), func(p *Postgres) { p.Lease = caddy.Duration(time.Minute) })
	for b.Loop() {
		if err := db.Stale(); err != nil {
			b.Fatal(err)
		}
	}
}

// A node that was told of many commits one by one, while it polled, need not poll once
// for each.
func TestABurstOfCommitsIsAnsweredByFewPolls(t *testing.T) {
	url := newURL(t)
	one, _ := join(t, url, longLease)
	other, _ := join(t, url, longLease)
	for range 300 {
		put(t, one, "k", "v")
	}
	if err := one.Await(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := pollsOf(t, one, other)
	time.Sleep(time.Second)
	if more := pollsOf(t, one, other) - before; more > 10 {
		t.Errorf("after all was known, it polled %d times in a second, though nothing was committed", more)
	}
}

// However fast changes come, a node asks for them at the pace of the gap, as long as
// nobody waits for it.
func TestPollsAreSpacedWhileChangesKeepComing(t *testing.T) {
	url := newURL(t)
	one, _ := join(t, url, longLease)
	other, told := join(t, url, longLease)
	stop := keepCommitting(t, one, 2, store.Batch{Puts: records("k", "v")})
	eventually(t, "changes keep coming", func() bool { return len(told.heard()) > 10 })
	before, begun := pollsOf(t, one, other), time.Now()
	time.Sleep(time.Second)
	polls, most := pollsOf(t, one, other)-before, int64(time.Since(begun)/pollGap)+2
	stop()
	if polls > most {
		t.Errorf("it polled %d times, more often than each %v", polls, pollGap)
	}
}

// There is a bound for those that somebody waits for, too. Polls are so slow here that
// a change comes during each, and the gap so long that many more fit into it.
func TestPollsHaveABoundWhileUrgentChangesKeepComing(t *testing.T) {
	usual := pollGap
	t.Cleanup(func() { pollGap = usual }) // when the nodes are closed
	pollGap = 200 * time.Millisecond
	server := testpostgres.Shared(t)
	name := server.NewDatabase(t)
	url := server.URL(name)
	one, _ := join(t, url, longLease)
	server.Exec(t, name, `CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.005); RETURN NEW; END $$`,
		`CREATE TRIGGER wait BEFORE UPDATE ON client_credentials_nodes FOR EACH ROW EXECUTE FUNCTION wait()`)
	other, told := join(t, url, longLease)
	stop := keepCommitting(t, one, 4, store.Batch{Puts: records("k", "v"), Urgent: true})
	eventually(t, "changes keep coming", func() bool { return len(told.heard()) > 10 })
	before, begun := pollsOf(t, one, other), time.Now()
	time.Sleep(time.Second)
	polls, most := pollsOf(t, one, other)-before, 5*(int64(time.Since(begun)/pollGap)+2)
	stop()
	if polls > most {
		t.Errorf("it polled %d times, more often than 5 times in %v", polls, pollGap)
	}
}

// keepCommitting has so many goroutines commit the batch, again and again, until stop
// is called.
func keepCommitting(t *testing.T, db *database, writers int, batch store.Batch) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range writers {
		all.Go(func() {
			for ctx.Err() == nil {
				if err := db.Commit(t.Context(), batch); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	return func() { cancel(); all.Wait() }
}

// Who waits for others does not wait for their pace, whatever was committed last.
func TestAQuietCommitWakesNobodyUntilItIsAwaited(t *testing.T) {
	url := newURL(t)
	one, _ := join(t, url, longLease)
	_, told := join(t, url, longLease)
	listener := listen(t, url)
	commit := func(batch store.Batch) {
		t.Helper()
		batch.Puts = records("k", "v")
		if err := one.Commit(t.Context(), batch); err != nil {
			t.Fatal(err)
		}
	}
	commit(store.Batch{Quiet: true})
	commit(store.Batch{})
	commit(store.Batch{Urgent: true, Quiet: true})
	if err := one.Commit(t.Context(), store.Batch{Urgent: true, Deletes: []string{"k"}}); err != nil { // which ends no right
		t.Fatal(err)
	}
	for _, want := range []string{"", hurryUp, ""} {
		if got := next(t, listener); got != want {
			t.Errorf("a notification of %q, want %q", got, want)
		}
	}
	eventually(t, "it is told", func() bool { return len(told.heard()) == 4 })
	commit(store.Batch{Quiet: true})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // it polls each 15 s
	defer cancel()
	if err := one.Await(ctx); err != nil {
		t.Fatal(err)
	}
	if got := next(t, listener); got != hurryUp {
		t.Errorf("Await notifies of %q, want %q", got, hurryUp)
	}
	if got, want := told.heard(), []string{"", "k", "k", "k", ""}; !slices.Equal(got, want) {
		t.Errorf("it was told %q, want %q", got, want)
	}
}

// listen returns a connection that is told of notifications.
func listen(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err == nil {
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		_, err = conn.Exec(t.Context(), `LISTEN `+channel)
	}
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// next returns what the next notification says.
func next(t *testing.T, listener *pgx.Conn) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	notification, err := listener.WaitForNotification(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return notification.Payload
}

// pollsOf returns how often another node has polled.
func pollsOf(t *testing.T, db, other *database) (n int64) {
	t.Helper()
	err := db.pool.QueryRow(t.Context(), `SELECT polls FROM client_credentials_nodes WHERE id = $1`, other.feed.node).Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
