package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/internal/testpostgres"
	"github.com/clientcredentials/caddy-client-credentials/store"
)

func lease(d time.Duration) func(*Postgres) {
	return func(p *Postgres) { p.Lease = caddy.Duration(d) }
}

func adopt(t *testing.T, db *database, url string, options ...func(*Postgres)) {
	t.Helper()
	engine := provisioned(t, url, options...)
	if err := db.Try(t.Context(), engine); err != nil {
		t.Fatal(err)
	}
	db.Adopt(engine)
}

// No poll lets a node serve for longer than what its row says, before and after it:
// others wait for no longer than that.
func TestALeaseThatIsChangedIsNeverLongerThanWhatOthersAreTold(t *testing.T) {
	url := newURL(t)
	db, watcher := open(t, url, lease(20*time.Second)), open(t, url)
	db.feed.follower = new(follower)
	// poll returns whether it lets the node serve for so long, and what the row says.
	poll := func(serves time.Duration) (so bool, row time.Duration, settled bool) {
		t.Helper()
		before := clock()
		settled, err := db.feed.poll(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		until := time.Duration(db.feed.until.Load())
		so = before+serves <= until && until <= clock()+serves
		v, err := watcher.look(t.Context(), position{})
		if err != nil {
			t.Fatal(err)
		}
		return so, v.others[db.feed.node].lease, settled
	}
	poll(0)
	for _, step := range []struct {
		lease, serves, row time.Duration // in seconds
		settled            bool
	}{
		{20, 20, 20, false}, // it has not said yet what it has applied
		{20, 20, 20, true},
		{60, 20, 60, false},
		{60, 60, 60, true},
		{10, 10, 60, false},
		{10, 10, 10, true},
		{30, 10, 30, false},
		{30, 30, 30, true},
		{60, 30, 60, false},
		{10, 10, 30, false},
		{60, 30, 60, false},
		{60, 60, 60, true},
	} {
		adopt(t, db, url, lease(step.lease*time.Second))
		so, row, settled := poll(step.serves * time.Second)
		if !so || row != step.row*time.Second || settled != step.settled {
			t.Errorf("with a lease of %ds: it serves for that: %t, and says %v, settled %t, want %+v", step.lease, so, row, settled, step)
		}
	}
}

// A node that has polled last longer ago than a shorter lease is not stale by that. A
// poll that fails may have told others of the shorter one all the same.
func TestAShorterLeaseCountsWhenTheDatabaseHasAnswered(t *testing.T) {
	url := newURL(t)
	db := open(t, url, lease(time.Minute))
	db.feed.follower = new(follower)
	poll := func(succeeds bool) (until time.Duration) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		if !succeeds {
			cancel()
		}
		if _, err := db.feed.poll(ctx); (err == nil) != succeeds {
			t.Fatalf("a poll that is to succeed, %t: %v", succeeds, err)
		}
		return time.Duration(db.feed.until.Load())
	}
	poll(true)
	poll(true)
	db.feed.until.Add(-int64(30 * time.Second)) // as if it had polled then
	before := time.Duration(db.feed.until.Load())
	adopt(t, db, url, lease(10*time.Second))
	if until := poll(false); until != before || db.Stale() != nil {
		t.Errorf("the lease ends %v earlier, and it says %v", before-until, db.Stale())
	}
	if until := poll(true); until > clock()+10*time.Second {
		t.Errorf("the node serves for %v by a lease of 10s", until-clock())
	}
	poll(false)
	adopt(t, db, url, lease(time.Minute))
	if until := poll(true); until > clock()+10*time.Second {
		t.Errorf("the node serves for %v, and its row may have said 10s", until-clock())
	}
}

func TestANodeIsNotStaleForAMomentWhenItsLeaseIsLowered(t *testing.T) {
	url := newURL(t)
	db, _ := join(t, url, longLease)
	watcher := open(t, url)
	told := func(d time.Duration) func() bool {
		return func() bool {
			v, err := watcher.look(t.Context(), position{})
			return err == nil && v.others[db.feed.node].lease == d && v.others[db.feed.node].applied > nothingYet
		}
	}
	eventually(t, "it has settled", told(time.Minute))
	stop := make(chan struct{})
	var asking sync.WaitGroup
	asking.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if err := db.Stale(); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	defer func() {
		close(stop)
		asking.Wait()
	}()
	db.feed.until.Add(-int64(40 * time.Second)) // as if it had polled then
	adopt(t, db, url, lease(30*time.Second))
	eventually(t, "others are told of the lease", told(30*time.Second))
}

func TestSettingsThatAreAdoptedCount(t *testing.T) {
	server := testpostgres.Shared(t)
	name := server.NewDatabase(t)
	proxy := testpostgres.NewProxy(t, server)
	db, _ := join(t, proxy.URL(name), longLease)
	other := open(t, server.URL(name), longLease)
	slow := &waitingFollower{release: make(chan struct{})}
	if err := other.Follow(t.Context(), slow); err != nil {
		t.Fatal(err)
	}
	put(t, db, "k", "1")
	adopt(t, db, proxy.URL(name), func(p *Postgres) { p.RevokeWait = RevokeWaitNone })
	if err := db.Await(t.Context()); err != nil || len(slow.heard()) != 0 {
		t.Errorf("Await = %v, and the other node was told %q", err, slow.heard())
	}
	close(slow.release)
	eventually(t, "others are told of the lease", func() bool {
		v, err := other.look(t.Context(), position{})
		return err == nil && v.others[db.feed.node].lease == time.Second
	})
	proxy.Cut()
	eventually(t, "the lease runs out", func() bool { return db.Stale() != nil })
	adopt(t, db, proxy.URL(name), func(p *Postgres) { p.OnStale = OnStaleAccept })
	if err := db.Stale(); err != nil {
		t.Errorf("with on_stale accept: %v", err)
	}
	adopt(t, db, proxy.URL(name))
	if db.Stale() == nil {
		t.Error("with on_stale refuse, it serves")
	}
	proxy.Heal()
	eventually(t, "it serves again", func() bool { return db.Stale() == nil })
}

func TestAnotherPasswordIsAdoptedIfItConnects(t *testing.T) {
	server := testpostgres.Shared(t)
	name := server.NewDatabase(t)
	server.Exec(t, "postgres", "CREATE ROLE "+name+" LOGIN PASSWORD 'first'", "ALTER DATABASE "+name+" OWNER TO "+name)
	url := func(password string) string {
		return fmt.Sprintf("postgres://%s:%s@127.0.0.1:%d/%s?sslmode=disable", name, password, server.Port, name)
	}
	db, told := join(t, url("first"))
	before := db.settings.connection.Load()
	for what, other := range map[string]string{"a wrong password": url("second"), "another user": server.URL(name)} {
		err := db.Try(t.Context(), provisioned(t, other))
		if err == nil || strings.Contains(err.Error(), "second") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if db.settings.connection.Load() != before {
		t.Error("connections are made by settings that were refused")
	}
	server.Exec(t, "postgres", "ALTER ROLE "+name+" PASSWORD 'second'")
	adopt(t, db, url("second"))
	server.Exec(t, "postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '"+name+"'")
	eventually(t, "it connects by the new password", func() bool {
		return db.Commit(t.Context(), store.Batch{Puts: records("k", "1")}) == nil
	})
	eventually(t, "it is told", func() bool { return slices.Contains(told.heard(), "k") })
}

// Where the feed has no connection, it has none to lose, by which it would have the
// others made anew, too.
func TestConnectionsOfThePoolAreMadeAnew(t *testing.T) {
	url := newURL(t)
	db := open(t, url)
	put(t, db, "k", "1")
	adopt(t, db, url+"&application_name=another")
	var name string
	if err := db.pool.QueryRow(t.Context(), `SHOW application_name`).Scan(&name); err != nil || name != "another" {
		t.Errorf("a connection is of %q, %v", name, err)
	}
}

// A server that can be connected to may be one that takes no polls.
func TestSettingsByWhichTheDatabaseCannotBeWrittenAreNotAdopted(t *testing.T) {
	url := newURL(t)
	db := open(t, url)
	// As a standby that was named with a target_session_attrs which it fits.
	engine := provisioned(t, url+"&target_session_attrs=primary&default_transaction_read_only=on")
	if err := db.Try(t.Context(), engine); !is(err, readOnlyTransaction) {
		t.Errorf("Try = %v", err)
	}
}
