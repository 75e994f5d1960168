package issuer

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

func find(t testing.TB, iss *Issuer, q Query) *Page {
	t.Helper()
	page, err := iss.Find(t.Context(), q)
	if err != nil {
		t.Fatalf("%+v: %v", q, err)
	}
	return page
}

// findAll follows the cursors.
func findAll(t testing.TB, iss *Issuer, q Query) (all []*Credential, pages int) {
	t.Helper()
	for {
		page := find(t, iss, q)
		if limit := q.Limit; limit > 0 && len(page.Credentials) > limit || len(page.Credentials) > maxLimit {
			t.Fatalf("a page has %d credentials", len(page.Credentials))
		}
		for _, found := range page.Credentials {
			all = append(all, found.Credential)
		}
		if pages++; page.Next == "" {
			return all, pages
		}
		q.Cursor = page.Next
	}
}

func ids(credentials []*Credential) string {
	var all []string
	for _, c := range credentials {
		all = append(all, c.ClientID)
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// wantIndexed holds all indexes against what they are made of.
func wantIndexed(t testing.TB, st store.Store) {
	t.Helper()
	var want, got []string
	var all []*Credential
	if err := scanCredentials(t.Context(), st, func(c *Credential) { all = append(all, c) }); err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		_, record, err := readUse(t.Context(), st, c.ClientID)
		if err != nil {
			t.Fatal(err)
		}
		want = append(append(want, c.entries()...), c.entryByUse(record))
	}
	for _, index := range []string{listedPrefix, byName, byScope, byExpiry, byDisabled, byRevoked, byUse, endedPrefix} {
		got = append(got, keys(t, st, index)...)
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(want, got) {
		t.Errorf("the indexes lack %q and hold %q beside", without(want, got), without(got, want))
	}
}

// createMany creates so many credentials at once.
func createMany(t testing.TB, iss *Issuer, n int, draft func(n int) Draft) []*Credential {
	t.Helper()
	all := make([]*Credential, n)
	var creators sync.WaitGroup
	for worker := range 64 {
		creators.Go(func() {
			for k := worker; k < n; k += 64 {
				c, _, err := iss.Create(t.Context(), draft(k))
				if err != nil {
					t.Error(err)
					return
				}
				all[k] = c
			}
		})
	}
	creators.Wait()
	return all
}

func TestAPageOfManyCredentialsReadsFew(t *testing.T) {
	st := &countingStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, st, time.Hour, 100)
	const many, few = 10_000, 5
	now := time.Now()
	all := createMany(t, iss, many, func(n int) Draft {
		name := fmt.Sprintf("Client %d", n)
		d := Draft{Account: "big", Scopes: []string{"read", "write"}, Expires: now.Add(1000 * time.Hour)}
		switch n / few {
		case 0:
			name = fmt.Sprintf("Ärger/%d", n)
		case 1:
			d.Scopes = append(d.Scopes, "rare/scope")
		case 2:
			d.Expires = now.Add(time.Hour)
		}
		d.Name = &name
		return d
	})
	if t.Failed() {
		t.FailNow()
	}
	createMany(t, iss, 100, func(int) Draft { return Draft{Account: "big-other", Scopes: []string{"rare/scope"}} })
	for n, c := range all {
		if n/few != 3 {
			iss.registry.uses.note(c.ClientID, hashedSecret{}, now.Add(2*time.Hour))
		}
	}
	if err := iss.registry.flushUses(t.Context()); err != nil {
		t.Fatal(err)
	}
	off := Patch{Enabled: named(false)}
	for n := range few {
		if _, err := iss.Change(t.Context(), "", all[4*few+n].ClientID, off); err != nil {
			t.Fatal(err)
		}
		if err := iss.Revoke(t.Context(), "", all[5*few+n].ClientID); err != nil {
			t.Fatal(err)
		}
	}
	wantIndexed(t, st)
	group := func(n int) []*Credential { return all[n*few : (n+1)*few] }
	for what, test := range map[string]struct {
		query Query
		want  []*Credential
	}{
		"a name":            {Query{Name: "äRGER/"}, group(0)},
		"a scope":           {Query{Scope: "rare/scope"}, group(1)},
		"an expiry":         {Query{ExpiresBefore: now.Add(2 * time.Hour)}, group(2)},
		"unused":            {Query{UnusedSince: now.Add(time.Hour)}, group(3)},
		"disabled":          {Query{Status: StatusDisabled}, group(4)},
		"revoked":           {Query{Status: StatusRevoked}, group(5)},
		"expired":           {Query{Status: StatusExpired}, nil},
		"a part of a scope": {Query{Scope: "rare/"}, nil},
		"two":               {Query{Scope: "read", Name: "ärger"}, group(0)},
		"none of two":       {Query{Scope: "rare/scope", Status: StatusRevoked}, nil},
	} {
		test.query.Account = "big"
		st.reads.Store(0)
		page := find(t, iss, test.query)
		reads := st.reads.Load()
		t.Logf("%s: %d reads", what, reads)
		if reads > 3*few+3 {
			t.Errorf("%s: %d reads", what, reads)
		}
		var found []*Credential
		for _, one := range page.Credentials {
			found = append(found, one.Credential)
		}
		if ids(found) != ids(test.want) || page.Next != "" {
			t.Errorf("%s: found %d credentials, want %d; next %q", what, len(found), len(test.want), page.Next)
		}
	}

	st.reads.Store(0)
	page := find(t, iss, Query{Account: "big", Limit: 10})
	if n := st.reads.Load(); len(page.Credentials) != 10 || page.Next == "" || n > 10*3+2 {
		t.Errorf("a page of 10 has %d credentials, and takes %d reads", len(page.Credentials), n)
	}
	// Nearly all have such a name: what it takes is bounded, page by page.
	st.reads.Store(0)
	page = find(t, iss, Query{Account: "big", Name: "client", Scope: "rare/scope", UnusedSince: now})
	if n := st.reads.Load(); len(page.Credentials) >= few || page.Next == "" || n > 2*maxLooked+2*few+20 {
		t.Errorf("a page that finds next to nothing has %d credentials, and takes %d reads", len(page.Credentials), n)
	}
	if found, pages := findAll(t, iss, Query{Account: "big", Name: "client", Scope: "rare/scope"}); ids(found) != ids(group(1)) || pages < many/maxLooked {
		t.Errorf("%d pages have %d credentials", pages, len(found))
	}
	if found, pages := findAll(t, iss, Query{Account: "big", Limit: maxLimit}); len(found) != many-few || pages != 10 {
		t.Errorf("%d pages have %d credentials", pages, len(found))
	}
}

func TestPagesGoThroughAccountsInOrder(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 100)
	var want []*Credential
	soon, late := time.Now().Add(time.Hour), time.Now().Add(48*time.Hour)
	for _, account := range []string{"a", "a-b", "a.b", "a0", "b"} { // whose signs sort around the slash
		for n := range 5 {
			name := fmt.Sprint("x", n)
			d := Draft{Account: account, Name: &name, Scopes: []string{"s", "t"}, Expires: soon}
			if n%2 == 0 {
				other := "w"
				d.Name, d.Scopes, d.Expires = &other, []string{"r", "u"}, late
			}
			c, _, err := iss.Create(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			if n%2 == 1 {
				want = append(want, c)
			}
		}
	}
	for _, q := range []Query{{Name: "X"}, {Scope: "s"}, {ExpiresBefore: soon.Add(time.Hour)}, {Scope: "t", Status: StatusActive}} {
		for _, q.Limit = range []int{1, 3, 100} {
			if found, _ := findAll(t, iss, q); ids(found) != ids(want) {
				t.Errorf("%+v finds %d, want %d", q, len(found), len(want))
			}
			q.Account = "a"
			if found, _ := findAll(t, iss, q); ids(found) != ids(want[:2]) {
				t.Errorf("%+v finds %d, want 2", q, len(found))
			}
			q.Account = ""
		}
	}
	first := find(t, iss, Query{Account: "a", Limit: 1})
	for what, cursor := range map[string]string{
		"of another account": first.Next, "no base64": "*", "nothing": "YQ",
		"of a record": base64.RawURLEncoding.EncodeToString([]byte(credentialPrefix)),
		"of all":      find(t, iss, Query{Limit: 1}).Next,
	} {
		if _, err := iss.Find(t.Context(), Query{Account: "b", Cursor: cursor}); err == nil || !strings.HasPrefix(err.Error(), "cursor ") {
			t.Errorf("a cursor that is %s: %v", what, err)
		}
	}
}

func TestAChangeMovesACredentialInItsIndexes(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 100)
	c, secret, _ := clientWithToken(t, iss)
	one, two := "one", "two"
	soon := time.Now().Add(time.Minute)
	for what, change := range map[string]Patch{
		"a name": {Name: named(&one)}, "another": {Name: named(&two)}, "none": {Name: named[*string](nil)},
		"scopes": {Scopes: named([]string{"a", "b"})}, "others": {Scopes: named([]string{"b", "c"})},
		"an expiry": {Expires: named(soon)}, "none again": {Expires: named(time.Time{})},
		"off": {Enabled: named(false)}, "on": {Enabled: named(true)},
	} {
		if _, err := iss.Change(t.Context(), "", c.ClientID, change); err != nil {
			t.Fatal(what, err)
		}
		wantIndexed(t, st)
	}
	if _, err := iss.Change(t.Context(), "", c.ClientID, Patch{Enabled: named(true), Expires: named(soon), Scopes: named([]string{"b"})}); err != nil {
		t.Fatal(err)
	}
	useSecret(t, iss, c.ClientID, secret)
	iss.registry.uses.note(c.ClientID, c.Hashes[0], time.Now().Add(5*time.Second))
	if err := iss.registry.flushUses(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantIndexed(t, st)

	other, _, _ := clientWithToken(t, iss)
	if _, err := iss.RevokeAll(t.Context(), "", Selection{Account: DefaultAccount}, other.ClientID, func(context.Context, *Credential) {}); err != nil {
		t.Fatal(err)
	}
	wantIndexed(t, st)
	// Earlier releases have no such indexes.
	var entries []string
	for _, index := range []string{byName, byScope, byExpiry, byDisabled, byRevoked, byUse} {
		entries = append(entries, keys(t, st, index)...)
	}
	records := keys(t, st, usedPrefix)
	if err := st.Commit(t.Context(), store.Batch{Deletes: append(entries, records...), Puts: []store.Record{{Key: formatKey, Value: []byte(`{"version":2}`)}}}); err != nil {
		t.Fatal(err)
	}
	newTestIssuer(t, st, time.Hour, 100)
	wantIndexed(t, st)
	iss.registry.uses.note(c.ClientID, c.Hashes[0], time.Now().Add(9*time.Second)) // before it was revoked
	if err := iss.registry.flushUses(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantIndexed(t, st)
	if err := iss.registry.sweep(t.Context(), time.Now().Add(2*DefaultRetention)); err != nil {
		t.Fatal(err)
	}
	wantIndexed(t, st)
	if n := len(keys(t, st, credentialPrefix)); n != 1 {
		t.Errorf("%d credentials are left", n)
	}
}

func TestTheIndexesOfAStoreAreMadeInSmallSteps(t *testing.T) {
	st := &countingStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, st, time.Hour, 100)
	createMany(t, iss, 600, func(int) Draft { return Draft{Scopes: []string{"a", "b"}} })
	var entries []string
	for _, index := range []string{listedPrefix, byScope, byUse} {
		entries = append(entries, keys(t, st, index)...)
	}
	if err := st.Commit(t.Context(), store.Batch{Deletes: append(entries, formatKey)}); err != nil {
		t.Fatal(err)
	}
	st.commits.Store(0)
	if err := migrate(t.Context(), st); err != nil {
		t.Fatal(err)
	}
	wantIndexed(t, st)
	if n := st.commits.Load(); n < 3 {
		t.Errorf("%d entries are made in %d steps", len(entries), n)
	}
}

// A new release does not come to the end of the migration, the one before takes
// over again, and later the new one.
func TestIndexesThatWereNotCompletedAreMadeAnew(t *testing.T) {
	st := &countingStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, st, time.Hour, 100)
	name := "x"
	all := createMany(t, iss, 300, func(int) Draft { return Draft{Name: &name, Scopes: []string{"a", "b"}} })
	old := store.Batch{Puts: []store.Record{{Key: formatKey, Value: []byte(`{"version":2}`)}}}
	for _, index := range []string{byName, byScope, byUse} {
		old.Deletes = append(old.Deletes, keys(t, st, index)...)
	}
	if err := st.Commit(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	backups := t.TempDir()
	start := func() error {
		return errors.Join(saveOldFormat(t.Context(), st, backups), migrate(t.Context(), st))
	}
	for range 2 {
		st.commits.Store(0)
		st.refuses = nil
		st.beforeCommit = func() { // of the backup's name; the next is that of the first entries
			st.beforeCommit = func() { st.beforeCommit = func() { st.refuses = store.ErrFull } }
		}
		if err := start(); !errors.Is(err, store.ErrFull) {
			t.Fatalf("%v after %d commits, want a full store", err, st.commits.Load())
		}
	}
	if n := len(keys(t, st, byUse)); n == 0 || n == len(all) {
		t.Fatalf("%d credentials are indexed: the test tests nothing", n)
	}
	st.refuses = nil
	gone := clientOf(keys(t, st, byUse)[0])
	c := known(t, iss, gone)
	if err := st.Commit(t.Context(), store.Batch{Deletes: []string{credentialKey(gone), c.entry(listedPrefix, fmt.Sprintf("%020d", c.Created.UnixNano()))}}); err != nil {
		t.Fatal(err)
	}
	if err := start(); err != nil {
		t.Fatal(err)
	}
	wantIndexed(t, st)
	if saved, _ := os.ReadDir(backups); len(saved) != 1 {
		t.Errorf("%d starts have left %d backups, want 1", 3, len(saved))
	}
	if left := keys(t, st, savedKey); len(left) != 0 {
		t.Errorf("%q is left", left)
	}
}

// Of a credential and its entries, either may be lost.
func TestTheIndexesOfWhatIsLeftAfterALossAreMadeAnew(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 100)
	unlisted, secret, _ := clientWithToken(t, iss)
	gone, _, _ := clientWithToken(t, iss)
	useSecret(t, iss, unlisted.ClientID, secret)
	iss.registry.uses.note(unlisted.ClientID, unlisted.Hashes[0], time.Now().Add(5*time.Second))
	if err := iss.registry.flushUses(t.Context()); err != nil {
		t.Fatal(err)
	}
	lost := append(unlisted.entries(), credentialKey(gone.ClientID))
	if err := st.Commit(t.Context(), store.Batch{Deletes: lost}); err != nil {
		t.Fatal(err)
	}
	if err := beginWithWhatIsLeft(t.Context(), st); err != nil {
		t.Fatal(err)
	}
	wantIndexed(t, st)
	left, err := newTestIssuer(t, st, time.Hour, 100).List(t.Context(), "")
	if err != nil || len(left) != 1 || left[0].ClientID != unlisted.ClientID {
		t.Errorf("List = %v, %v, want what is left", left, err)
	}
}

func TestAPageIsReadWhileCredentialsAreRemoved(t *testing.T) {
	hooked := &hookedStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, hooked, time.Hour, 100)
	clientWithToken(t, iss)
	if _, _, err := iss.Create(t.Context(), Draft{Expires: time.Now().Add(time.Minute)}); err != nil {
		t.Fatal(err)
	}
	hooked.afterGet = func(string) { // of the first
		hooked.afterGet = nil
		if err := iss.registry.sweep(context.Background(), time.Now().Add(2*DefaultRetention)); err != nil {
			t.Error(err)
		}
	}
	if page := find(t, iss, Query{}); len(page.Credentials) != 1 || hooked.afterGet != nil {
		t.Errorf("the page has %d credentials", len(page.Credentials))
	}
	for _, c := range keys(t, hooked, credentialPrefix) {
		_ = hooked.Commit(t.Context(), store.Batch{Deletes: []string{c}})
	}
	if _, err := iss.Find(t.Context(), Query{}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("where a record is lost: %v", err)
	}
}

func TestADeclaredCredentialIsFoundInTheAccountThatItHasNow(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 100)
	secret := NewSecret()
	d := DeclaredCredential{ClientID: "shop", SecretHashes: []string{HashSecret(secret)}, Account: "a", Scopes: []string{"s"}}
	for _, account := range []string{"a", "b", "", "b"} { // where it is empty, it is not declared
		d.Account = account
		declared := []DeclaredCredential{d}
		if account == "" {
			declared = nil
		}
		if err := iss.declare(t.Context(), declared); err != nil {
			t.Fatal(err)
		}
		if account != "" {
			useSecret(t, iss, "shop", secret)
		}
		wantIndexed(t, st)
		for _, other := range []string{"a", "b"} {
			want := 0
			if other == account {
				want = 1
			}
			page := find(t, iss, Query{Account: other, Scope: "s", UnusedSince: time.Now().Add(time.Hour)})
			if len(page.Credentials) != want {
				t.Errorf("declared in %q, %d are found in %q", account, len(page.Credentials), other)
			}
		}
		if err := iss.registry.flushUses(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
