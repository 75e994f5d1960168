package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/internal/testpostgres"
	"github.com/clientcredentials/caddy-client-credentials/store"
)

func TestGetReturnsWhatWasPut(t *testing.T) {
	db := open(t, newURL(t))
	binary := "\x00\xff\r\n" + strings.Repeat("x", 1<<20)
	for key, value := range map[string]string{"a": "1", "empty": "", "binary": binary, "k\x00\xff/ü": "odd key"} {
		put(t, db, key, value)
		if got, err := db.Get(t.Context(), key); err != nil || string(got) != value {
			t.Errorf("Get(%q) = %d bytes, %v, want %d bytes", key, len(got), err, len(value))
		}
	}
	if _, err := db.Get(t.Context(), "b"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get of no record = %v, want ErrNotFound", err)
	}
	put(t, db, "a", "2", "a", "3")
	if got, err := db.Get(t.Context(), "a"); err != nil || string(got) != "3" {
		t.Errorf("Get after more Puts = %q, %v", got, err)
	}
	batch := store.Batch{Puts: records("a", "4"), Deletes: []string{"a", "never there"}}
	if err := db.Commit(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Get(t.Context(), "a"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get of a deleted record = %v, want ErrNotFound", err)
	}
}

func TestAScanGivesTheRecordsOfAPrefixInTheOrderOfTheirBytes(t *testing.T) {
	db := open(t, newURL(t))
	for _, key := range []string{"b/2", "a/10", "a/9", "a", "a0", "a/\xff", "a/", "b/1", "A/1", "\xff", "\xff\xffz"} {
		put(t, db, key, "v")
	}
	for prefix, want := range map[string][]string{
		"a/":       {"a/=v", "a/10=v", "a/9=v", "a/\xff=v"},
		"b/2":      {"b/2=v"},
		"c":        {},
		"\xff":     {"\xff=v", "\xff\xffz=v"},
		"\xff\xff": {"\xff\xffz=v"},
		"":         {"A/1=v", "a=v", "a/=v", "a/10=v", "a/9=v", "a/\xff=v", "a0=v", "b/1=v", "b/2=v", "\xff=v", "\xff\xffz=v"},
	} {
		if got := contents(t, db, prefix); !slices.Equal(got, want) {
			t.Errorf("Scan(%q) = %q, want %q", prefix, got, want)
		}
	}
	var from []string
	err := db.ScanFrom(t.Context(), "a/", "a/2", func(key string, _ []byte) error {
		from = append(from, key)
		return nil
	})
	if want := []string{"a/9", "a/\xff"}; err != nil || !slices.Equal(from, want) {
		t.Errorf("ScanFrom = %q, %v, want %q", from, err, want)
	}
	ended := errors.New("enough")
	if err := db.Scan(t.Context(), "", func(string, []byte) error { return ended }); !errors.Is(err, ended) {
		t.Errorf("Scan returns %v, want fn's error", err)
	}
}

// The view is that of one moment: the writer keeps all counters equal.
func TestALongScanSeesOneMomentWhileOthersCommit(t *testing.T) {
	db := open(t, newURL(t))
	const keys = 10_000
	all := store.Batch{}
	for n := range keys {
		all.Puts = append(all.Puts, store.Record{Key: fmt.Sprintf("k/%05d", n), Value: []byte("0")})
	}
	if err := db.Commit(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var writer sync.WaitGroup
	defer writer.Wait()
	defer stop()
	var rounds atomic.Int64
	writer.Go(func() {
		for round := 1; ctx.Err() == nil; round++ {
			value := fmt.Sprint(round)
			err := db.Commit(context.Background(), store.Batch{Puts: records("k/00000", value, "k/05000", value, "k/09999", value)})
			if err != nil {
				t.Error(err)
				return
			}
			rounds.Add(1)
		}
	})
	for range 5 {
		before, n, seen := rounds.Load(), 0, make(map[string]string)
		err := db.Scan(t.Context(), "k/", func(key string, value []byte) error {
			if want := fmt.Sprintf("k/%05d", n); key != want {
				return fmt.Errorf("record %d is %s, want %s", n, key, want)
			}
			n++
			seen[key] = string(value)
			if n == keys/2 { // somebody has committed since the scan began
				eventually(t, "a commit", func() bool { return rounds.Load() > before+1 })
			}
			return nil
		})
		if err != nil || n != keys {
			t.Fatalf("a scan of %d records: %v", n, err)
		}
		if seen["k/00000"] != seen["k/05000"] || seen["k/00000"] != seen["k/09999"] {
			t.Errorf("a scan saw %s, %s and %s", seen["k/00000"], seen["k/05000"], seen["k/09999"])
		}
	}
}

func TestScansLeaveConnectionsForOthers(t *testing.T) {
	db := open(t, newURL(t)+"&pool_max_conns=2")
	batch := store.Batch{}
	for n := range 2 * page {
		batch.Puts = append(batch.Puts, store.Record{Key: fmt.Sprintf("k/%05d", n)})
	}
	if err := db.Commit(t.Context(), batch); err != nil {
		t.Fatal(err)
	}
	held, letGo := make(chan struct{}, 10), make(chan struct{})
	var scans sync.WaitGroup
	for range 4 {
		scans.Go(func() {
			n := 0
			err := db.Scan(t.Context(), "k/", func(string, []byte) error {
				if n++; n == page+1 {
					held <- struct{}{}
					<-letGo
				}
				return nil
			})
			if err != nil || n != 2*page {
				t.Errorf("Scan: %d records, %v", n, err)
			}
		})
	}
	<-held
	put(t, db, "other", "1")
	if _, err := db.Get(t.Context(), "other"); err != nil {
		t.Error(err)
	}
	close(letGo)
	scans.Wait()
}

func TestABatchIsCarriedOutOnlyIfItsConditionsHold(t *testing.T) {
	db := open(t, newURL(t))
	put(t, db, "a", "1", "empty", "")
	for name, test := range map[string]struct {
		condition store.Condition
		holds     bool
	}{
		"the value":                 {store.Condition{Key: "a", Value: []byte("1")}, true},
		"another value":             {store.Condition{Key: "a", Value: []byte("2")}, false},
		"a value of none":           {store.Condition{Key: "b", Value: []byte("1")}, false},
		"an empty value":            {store.Condition{Key: "empty", Value: []byte{}}, true},
		"an empty value of none":    {store.Condition{Key: "b", Value: []byte{}}, false},
		"no record":                 {store.Condition{Key: "b"}, true},
		"no record, where there is": {store.Condition{Key: "a"}, false},
		"no record, but an empty":   {store.Condition{Key: "empty"}, false},
	} {
		for _, batch := range []store.Batch{
			{Conditions: []store.Condition{test.condition}},
			{Conditions: []store.Condition{test.condition}, Puts: records("mark", name)},
			{Conditions: []store.Condition{{Key: "a", Value: []byte("1")}, test.condition}, Deletes: []string{"mark"}},
		} {
			if err := db.Commit(t.Context(), batch); test.holds && err != nil || !test.holds && !errors.Is(err, store.ErrConflict) {
				t.Errorf("%s: Commit = %v", name, err)
			}
		}
		if value, _ := db.Get(t.Context(), "mark"); string(value) == name {
			t.Errorf("%s: its batch was carried out, or its deletion was not", name)
		}
	}
}

func TestNoneOfManyThatChangeARecordAtOnceIsLost(t *testing.T) {
	url := newURL(t)
	const each = 25
	var all sync.WaitGroup
	for range 2 { // nodes
		db := open(t, url)
		for range 4 {
			all.Go(func() {
				for n := 0; n < each; {
					old, err := db.Get(t.Context(), "n")
					condition := store.Condition{Key: "n", Value: old}
					if err != nil && !errors.Is(err, store.ErrNotFound) {
						t.Error(err)
						return
					}
					switch err := db.Commit(t.Context(), store.Batch{
						Conditions: []store.Condition{condition},
						Puts:       []store.Record{{Key: "n", Value: append(old, '.')}},
					}); {
					case err == nil:
						n++
					case !errors.Is(err, store.ErrConflict):
						t.Error(err)
						return
					}
				}
			})
		}
	}
	all.Wait()
	value, err := open(t, url).Get(t.Context(), "n")
	if err != nil || len(value) != 2*4*each {
		t.Errorf("%d changes are there, %v, want %d", len(value), err, 2*4*each)
	}
}

func TestDamageIsAnErrorAndNeverAValue(t *testing.T) {
	server := testpostgres.Shared(t)
	name := server.NewDatabase(t)
	db := open(t, server.URL(name))
	put(t, db, "k", "value", "other", "value")
	for damage, statement := range map[string]string{
		"a flipped bit":   `UPDATE client_credentials_records SET value = set_bit(value, 50, 1 - get_bit(value, 50)) WHERE key = 'k'`,
		"another's value": `UPDATE client_credentials_records SET value = (SELECT value FROM client_credentials_records WHERE key = 'other') WHERE key = 'k'`,
		"cut short":       `UPDATE client_credentials_records SET value = substring(value FOR 6) WHERE key = 'k'`,
		"nothing is left": `UPDATE client_credentials_records SET value = '' WHERE key = 'k'`,
	} {
		put(t, db, "k", "value")
		server.Exec(t, name, statement)
		if _, err := db.Get(t.Context(), "k"); !errors.Is(err, store.ErrCorrupt) {
			t.Errorf("%s: Get = %v, want ErrCorrupt", damage, err)
		}
		if err := db.Scan(t.Context(), "k", func(string, []byte) error { return nil }); !errors.Is(err, store.ErrCorrupt) {
			t.Errorf("%s: Scan = %v, want ErrCorrupt", damage, err)
		}
		condition := []store.Condition{{Key: "k", Value: []byte("value")}}
		if err := db.Commit(t.Context(), store.Batch{Conditions: condition, Puts: records("k", "new")}); !errors.Is(err, store.ErrCorrupt) {
			t.Errorf("%s: Commit = %v, want ErrCorrupt", damage, err)
		}
	}
}

func TestTransactionsInEachOthersWayAreTriedAgain(t *testing.T) {
	server := testpostgres.Shared(t)
	name := server.NewDatabase(t)
	db := open(t, server.URL(name))
	put(t, db, "k", "1")
	// Another transaction holds the record, and wants the head while the commit,
	// which has that, wants the record: one of them has to give in.
	conn := server.Connect(t, name)
	exec := func(statement string) {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Logf("%s: %v", statement, err)
		}
	}
	exec(`SET deadlock_timeout = '1min'`) // it is not this one
	exec(`BEGIN`)
	exec(`SELECT 1 FROM client_credentials_records WHERE key = 'k' FOR UPDATE`)
	committed := make(chan error, 1)
	go func() {
		committed <- db.Commit(context.Background(), store.Batch{Puts: records("k", "2")})
	}()
	watcher := server.Connect(t, name)
	eventually(t, "the commit waits", func() bool {
		waiting := 0
		err := watcher.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&waiting)
		return err == nil && waiting == 1
	})
	exec(`UPDATE client_credentials_head SET n = n`)
	exec(`ROLLBACK`)
	if err := <-committed; err != nil {
		t.Errorf("Commit = %v", err)
	}
	if log, err := os.ReadFile(filepath.Join(server.Dir, "log")); err != nil || !strings.Contains(string(log), "deadlock detected") {
		t.Errorf("the server has seen no deadlock, %v", err)
	}
	if value, err := db.Get(t.Context(), "k"); err != nil || string(value) != "2" {
		t.Errorf("Get = %q, %v", value, err)
	}
}

func TestAFullDiskIsErrFull(t *testing.T) {
	server := testpostgres.Shared(t)
	name := server.NewDatabase(t)
	db := open(t, server.URL(name))
	server.Exec(t, name,
		`CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE disk_full; END $$`,
		`CREATE TRIGGER full_disk BEFORE INSERT ON client_credentials_records EXECUTE FUNCTION full_disk()`)
	if err := db.Commit(t.Context(), store.Batch{Puts: records("k", "1")}); !errors.Is(err, store.ErrFull) {
		t.Errorf("Commit = %v, want ErrFull", err)
	}
	if err := db.Commit(t.Context(), store.Batch{Deletes: []string{"k"}}); err != nil {
		t.Errorf("a deletion after that: %v", err)
	}
}

// What the role has chosen for itself does not count for what is acknowledged.
func TestACommitIsOnTheDiskWhateverTheRoleHas(t *testing.T) {
	server := testpostgres.Shared(t)
	name := server.NewDatabase(t)
	db := open(t, server.URL(name)+"&synchronous_commit=off")
	server.Exec(t, name,
		`CREATE TABLE seen (setting text)`,
		`CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO seen VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$`,
		`CREATE TRIGGER see AFTER INSERT ON client_credentials_records EXECUTE FUNCTION see()`)
	put(t, db, "k", "1")
	seen := ""
	if err := server.Connect(t, name).QueryRow(t.Context(), `SELECT setting FROM seen`).Scan(&seen); err != nil || seen != "on" {
		t.Errorf("synchronous_commit was %s, %v", seen, err)
	}
}

func TestTheSchemaIsMadeOnceHoweverManyOpenIt(t *testing.T) {
	server := testpostgres.Shared(t)
	name := server.NewDatabase(t)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			st, err := provisioned(t, server.URL(name)).Open(t.Context())
			if err != nil {
				t.Error(err)
				return
			}
			put(t, st, "k", "1")
			if err := st.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	head := 0
	err := server.Connect(t, name).QueryRow(t.Context(), `SELECT n FROM client_credentials_head`).Scan(&head)
	if err != nil || head != 8 {
		t.Errorf("%d commits, %v", head, err)
	}
}

func TestASchemaOfALaterVersionIsRefused(t *testing.T) {
	server := testpostgres.Shared(t)
	name := server.NewDatabase(t)
	db := open(t, server.URL(name))
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	server.Exec(t, name, `UPDATE client_credentials_schema SET version = 99`)
	_, err := provisioned(t, server.URL(name)).Open(t.Context())
	if err == nil || !strings.Contains(err.Error(), "version 99") {
		t.Errorf("Open = %v", err)
	}
}

func TestARoleWithoutTheRightToMakeTablesCanUseThem(t *testing.T) {
	server := testpostgres.Shared(t)
	name := server.NewDatabase(t)
	open(t, server.URL(name))
	role := name + "_role"
	server.Exec(t, name, `CREATE ROLE `+role+` LOGIN PASSWORD 'p'`,
		`REVOKE CREATE ON SCHEMA public FROM PUBLIC`,
		`GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO `+role)
	db, _ := join(t, strings.Replace(server.URL(name), "caddy:"+server.Password, role+":p", 1))
	put(t, db, "k", "1")
}

func TestTwoStoresCanShareADatabase(t *testing.T) {
	server := testpostgres.Shared(t)
	name := server.NewDatabase(t)
	server.Exec(t, name, `CREATE SCHEMA one`, `CREATE SCHEMA two`)
	one, two := open(t, server.URL(name)+"&search_path=one"), open(t, server.URL(name)+"&search_path=two")
	put(t, one, "k", "1")
	if _, err := two.Get(t.Context(), "k"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get = %v, want ErrNotFound", err)
	}
}

func TestAClosedStoreSaysSo(t *testing.T) {
	db, _ := join(t, newURL(t))
	for range 2 {
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, err := db.Get(t.Context(), "k")
	for what, err := range map[string]error{
		"Get":    err,
		"Scan":   db.Scan(t.Context(), "", func(string, []byte) error { return nil }),
		"Commit": db.Commit(t.Context(), store.Batch{}),
		"Follow": db.Follow(t.Context(), new(follower)),
		"Stale":  db.Stale(),
		"Await":  db.Await(t.Context()),
	} {
		if !errors.Is(err, store.ErrClosed) {
			t.Errorf("%s = %v, want ErrClosed", what, err)
		}
	}
}

// A server that gives up waiting for its replica says so by a warning alone.
func TestACommitWithAWarningIsNotAcknowledged(t *testing.T) {
	server := testpostgres.Shared(t)
	name := server.NewDatabase(t)
	db := open(t, server.URL(name))
	server.Exec(t, name,
		`CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE WARNING 'for the test'; RETURN NULL; END $$`,
		`CREATE CONSTRAINT TRIGGER warn AFTER INSERT ON client_credentials_records DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION warn()`)
	if err := db.Commit(t.Context(), store.Batch{Puts: records("k", "1")}); err == nil {
		t.Error("Commit returns no error")
	}
	if err := db.Commit(t.Context(), store.Batch{Puts: records("k", "2")}); err != nil { // an update
		t.Errorf("a commit after that: %v", err)
	}
}

// A node that was cut off between the two round trips of a commit holds the head.
func TestACommitWaitsOutANodeThatIsCutOffWhileItCommits(t *testing.T) {
	server := testpostgres.Shared(t)
	name := server.NewDatabase(t)
	db := open(t, server.URL(name))
	cut := server.Connect(t, name)
	for _, statement := range []string{`BEGIN`, db.features.settings, `UPDATE client_credentials_head SET n = n + 1`} {
		if _, err := cut.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	put(t, db, "k", "1")
}
