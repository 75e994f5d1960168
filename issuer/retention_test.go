package issuer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

func TestCredentialsThatHaveEndedLeaveTheDisk(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 100)
	expires := time.Now().Add(time.Hour)
	active, _, _ := clientWithToken(t, iss)
	revoked, _, token := clientWithToken(t, iss)
	var expiring, both *Credential
	for _, c := range []**Credential{&expiring, &both} {
		var err error
		if *c, _, err = iss.Create(t.Context(), Draft{Expires: expires}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []*Credential{revoked, both} {
		if err := iss.Revoke(t.Context(), "", c.ClientID); err != nil {
			t.Fatal(err)
		}
	}
	kept := time.Hour + clockMargin + DefaultRetention
	for _, step := range []struct {
		when time.Time
		left []*Credential
	}{
		{time.Now().Add(kept - time.Minute), []*Credential{active, revoked, expiring, both}},
		{time.Now().Add(kept + time.Minute), []*Credential{active, expiring}},
		{expires.Add(kept - time.Minute), []*Credential{active, expiring}},
		{expires.Add(kept + time.Minute), []*Credential{active}},
	} {
		if err := iss.registry.sweep(t.Context(), step.when); err != nil {
			t.Fatal(err)
		}
		found := strings.Join(keys(t, st, credentialPrefix), " ")
		if n := strings.Count(found, credentialPrefix); n != len(step.left) {
			t.Errorf("%d are left, want %d", n, len(step.left))
		}
		for _, c := range step.left {
			if !strings.Contains(found, c.ClientID) {
				t.Errorf("%s is gone too early", c.ClientID)
			}
		}
	}
	if left := append(keys(t, st, endedPrefix), keys(t, st, listedPrefix)...); len(left) != 1 {
		t.Errorf("the indexes still hold %q", left)
	}
	if reason := refused(t, iss, token); reason != "unknown client" {
		t.Errorf("its token is refused as %q", reason)
	}
}

func TestAListIsMadeWhileWhatHasEndedIsRemoved(t *testing.T) {
	hooked := &hookedStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, hooked, time.Hour, 100)
	active, _, _ := clientWithToken(t, iss)
	expired, _, err := iss.Create(t.Context(), Draft{Expires: time.Now().Add(time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	hooked.afterGet = func(string) { // of the first
		hooked.afterGet = nil
		if err := iss.registry.sweep(t.Context(), time.Now().Add(2*DefaultRetention)); err != nil {
			t.Error(err)
		}
	}
	if all, err := iss.List(t.Context(), ""); err != nil || len(all) != 1 || all[0].ClientID != active.ClientID {
		t.Errorf("List = %v, %v, want %s alone", all, err, active.ClientID)
	}
	if left := keys(t, hooked, credentialKey(expired.ClientID)); len(left) > 0 {
		t.Error("the other one was not removed: the test tests nothing")
	}
	if err := hooked.Commit(t.Context(), store.Batch{Deletes: []string{credentialKey(active.ClientID)}}); err != nil {
		t.Fatal(err)
	}
	if _, err := iss.List(t.Context(), ""); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("List = %v where a record is lost", err)
	}
}

func TestCredentialsThatHaveExpiredAreNotCounted(t *testing.T) {
	hooked := &hookedStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, hooked, time.Hour, 100)
	now := time.Now()
	var made []*Credential
	for _, days := range []int{0, 1, 8, 29, 31, 31} {
		var d Draft
		if days > 0 {
			d.Expires = now.AddDate(0, 0, days)
		}
		c, _, err := iss.Create(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, c)
	}
	orders := Import{ClientID: "orders", Secret: newSecret(), Disabled: true, Draft: Draft{Expires: now.AddDate(0, 0, 2)}}
	if err := iss.Import(t.Context(), orders, false); err != nil {
		t.Fatal(err)
	}
	if err := iss.Revoke(t.Context(), "", made[5].ClientID); err != nil {
		t.Fatal(err)
	}
	hooked.afterGet = func(key string) { t.Errorf("to count, %s is read", key) }
	for days, want := range map[int]census{
		0:  {6, [...]int{2, 4}},
		2:  {4, [...]int{1, 3}},
		30: {2, [...]int{1, 1}},
		32: {1, [...]int{0, 0}},
	} {
		if got, err := iss.registry.count(t.Context(), now.AddDate(0, 0, days)); err != nil || got != want {
			t.Errorf("after %d days: %v, %v, want %v", days, got, err, want)
		}
	}
}

func TestAConfigurationThatFailsTakesItsSettingsWithIt(t *testing.T) {
	dir := t.TempDir()
	running, failing, next := newTestApp(t, dir, ""), newTestApp(t, dir, ""), newTestApp(t, dir, "")
	running.Retention = caddy.Duration(2 * time.Hour)
	failing.Retention, failing.TokenCache = caddy.Duration(time.Hour), 1<<20
	next.Retention, next.TokenCache = caddy.Duration(time.Hour), 2<<20
	iss, err := running.Open()
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		when      string
		do        func() error
		retention time.Duration
		cache     int64
	}{
		{"one starts", failing.Start, 2 * time.Hour, 1 << 20},
		{"it has failed", failing.Cleanup, 2 * time.Hour, DefaultTokenCache},
		{"another starts", next.Start, 2 * time.Hour, 2 << 20},
		{"the first has ended", running.Cleanup, time.Hour, 2 << 20},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		retention, cache := time.Duration(iss.registry.retention.Load()), iss.registry.verified.Size()
		if retention != step.retention || cache != step.cache {
			t.Errorf("%s: retention %v, cache %d, want %v and %d", step.when, retention, cache, step.retention, step.cache)
		}
	}
	_ = next.Cleanup()
}

func TestAStoreOfTheFirstFormatIsBroughtIntoTheCurrentOne(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 100)
	revoked, _, _ := clientWithToken(t, iss)
	expiring, _, err := iss.Create(t.Context(), Draft{Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	clientWithToken(t, iss)
	if err := iss.Revoke(t.Context(), "", revoked.ClientID); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprint(keys(t, st, endedPrefix))
	if !strings.Contains(want, revoked.ClientID) || !strings.Contains(want, expiring.ClientID) {
		t.Fatalf("the index holds %s", want)
	}
	if err := st.Commit(t.Context(), store.Batch{Deletes: append(keys(t, st, endedPrefix), formatKey)}); err != nil {
		t.Fatal(err)
	}
	before := filepath.Join(t.TempDir(), "backups")
	if err := saveOldFormat(t.Context(), st, before); err != nil {
		t.Fatal(err)
	}
	newTestIssuer(t, st, time.Hour, 100)
	if got := fmt.Sprint(keys(t, st, endedPrefix)); got != want {
		t.Errorf("the index holds %s, want %s", got, want)
	}
	if format, err := readFormat(t.Context(), st); err != nil || format != currentFormat {
		t.Errorf("format %d, %v", format, err)
	}
	if err := saveOldFormat(t.Context(), st, before); err != nil { // it has nothing to do any more
		t.Fatal(err)
	}
	saved, _ := filepath.Glob(filepath.Join(before, "format-1-*.backup"))
	if len(saved) != 1 {
		t.Fatalf("backups: %q, want one", saved)
	}
	file, err := os.Open(saved[0])
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if contents, err := ReadBackup(file); err != nil || contents.Active != 2 || contents.Revoked != 1 {
		t.Errorf("the backup holds %+v, %v", contents, err)
	}
}

func TestAnEmptyStoreIsNotBackedUp(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "backups")
	if err := saveOldFormat(t.Context(), openTestStore(t, t.TempDir()), dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory is made for nothing: %v", err)
	}
}

func TestAStoreOfALaterFormatIsRefusedByName(t *testing.T) {
	for value, want := range map[string]string{
		`{"version":4}`: "format 4",
		`{"version":0}`: "can't be read",
		`{}`:            "can't be read",
		`nothing`:       "can't be read",
	} {
		st := openTestStore(t, t.TempDir())
		if err := st.Commit(t.Context(), store.Batch{Puts: []store.Record{{Key: formatKey, Value: []byte(value)}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := openRegistry(t.Context(), st, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", value, err)
		}
	}
}

// createAndRevoke makes so many credentials and revokes them, many at a time, and
// returns how many bytes the directory of the store had at most.
func createAndRevoke(tb testing.TB, cycles int) (most int64) {
	dir := tb.TempDir()
	st := openTestStore(tb, dir)
	iss := newTestIssuer(tb, st, time.Second, 100)
	iss.registry.retention.Store(0)
	const workers, step = 64, 10_000
	for done := 0; done < cycles; done += step {
		var group sync.WaitGroup
		for range workers {
			group.Go(func() {
				for range step / workers {
					c, _, err := iss.Create(tb.Context(), Draft{Scopes: []string{"read"}})
					if err == nil {
						err = iss.Revoke(tb.Context(), "", c.ClientID)
					}
					if err != nil {
						tb.Error(err)
						return
					}
				}
			})
		}
		group.Wait()
		if err := iss.registry.sweep(tb.Context(), time.Now().Add(time.Hour)); err != nil {
			tb.Fatal(err)
		}
		most = max(most, directoryBytes(tb, dir))
	}
	if left := keys(tb, st, credentialPrefix); len(left) > 0 {
		tb.Errorf("%d credentials are left", len(left))
	}
	return most
}

func directoryBytes(tb testing.TB, dir string) (sum int64) {
	err := filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err == nil && info.Mode().IsRegular() {
			sum += info.Size()
		}
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return sum
}

func TestTheDirectoryIsAsLargeAsWhatIsLive(t *testing.T) {
	few, many := createAndRevoke(t, 10_000), createAndRevoke(t, 40_000)
	t.Logf("%d and %d MiB", few>>20, many>>20)
	if many > few+few/2 {
		t.Errorf("after 10,000 credentials that have come and gone the store has %d bytes, and %d after 40,000", few, many)
	}
}

// Soak: -benchtime 1000000x makes and revokes a million.
func BenchmarkCreateAndRevoke(b *testing.B) {
	most := createAndRevoke(b, b.N)
	b.ReportMetric(float64(most)/(1<<20), "MiB-at-most")
}

// viewedStore tells how many records the longest scan has gone through.
type viewedStore struct {
	store.Store
	longest int
}

func (s *viewedStore) Scan(ctx context.Context, prefix string, fn func(string, []byte) error) error {
	return s.ScanFrom(ctx, prefix, prefix, fn)
}

func (s *viewedStore) ScanFrom(ctx context.Context, prefix, from string, fn func(string, []byte) error) error {
	n := 0
	return s.Store.ScanFrom(ctx, prefix, from, func(key string, value []byte) error {
		n++
		s.longest = max(s.longest, n)
		return fn(key, value)
	})
}

func TestTheCensusHoldsNoViewOfAllCredentials(t *testing.T) {
	viewed := &viewedStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, viewed, time.Hour, 100)
	now := time.Now()
	made := 0
	for _, more := range []int{censusPage, 1, censusPage - 1, 1} { // to the end of a page, and beyond it
		for more > 0 {
			var batch store.Batch
			for range min(more, 1000) {
				c := &Credential{ClientID: fmt.Sprintf("%032x", made), Account: DefaultAccount, Created: now, Expires: now.AddDate(0, 0, 1+made%10)}
				for _, entry := range []string{c.entry(listedPrefix, seconds(c.Created)), c.entry(byExpiry, seconds(c.Expires))} {
					batch.Puts = append(batch.Puts, store.Record{Key: entry})
				}
				made++
				more--
			}
			if err := viewed.Commit(t.Context(), batch); err != nil {
				t.Fatal(err)
			}
		}
		viewed.longest = 0
		got, err := iss.registry.count(t.Context(), now)
		if err != nil || got.live != made || got.expiring[1] != made {
			t.Errorf("of %d: %v, %v", made, got, err)
		}
		if viewed.longest > censusPage+1 {
			t.Errorf("one scan has gone through %d records of %d", viewed.longest, made)
		}
	}
}
