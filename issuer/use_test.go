package issuer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
	"github.com/clientcredentials/caddy-client-credentials/store/backup"
)

// countingStore counts what is done with a store.
type countingStore struct {
	store.Store
	commits, reads atomic.Int64
	beforeCommit   func()
	refuses        error
}

func (s *countingStore) Get(ctx context.Context, key string) ([]byte, error) {
	s.reads.Add(1)
	return s.Store.Get(ctx, key)
}

func (s *countingStore) Scan(ctx context.Context, prefix string, fn func(string, []byte) error) error {
	return s.Store.Scan(ctx, prefix, func(key string, value []byte) error {
		s.reads.Add(1)
		return fn(key, value)
	})
}

func (s *countingStore) ScanFrom(ctx context.Context, prefix, from string, fn func(string, []byte) error) error {
	return s.Store.ScanFrom(ctx, prefix, from, func(key string, value []byte) error {
		s.reads.Add(1)
		return fn(key, value)
	})
}

func (s *countingStore) Commit(ctx context.Context, batch store.Batch) error {
	s.commits.Add(1)
	if before := s.beforeCommit; before != nil {
		s.beforeCommit = nil
		before()
	}
	if s.refuses != nil {
		return s.refuses
	}
	return s.Store.Commit(ctx, batch)
}

func lastUse(t testing.TB, iss *Issuer, c *Credential) Use {
	t.Helper()
	u, err := iss.LastUse(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func useSecret(t testing.TB, iss *Issuer, clientID, secret string) {
	t.Helper()
	if _, err := iss.Issue(t.Context(), tokenRequest(clientID, secret)); err != nil {
		t.Fatal(err)
	}
}

func TestUsesAreWrittenTogetherAndTheCredentialStaysAsItIs(t *testing.T) {
	st := &countingStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, st, time.Hour, 100)
	const clients = useBatch + 10
	all, secrets := make([]*Credential, clients), make([]string, clients)
	for n := range all {
		var err error
		if all[n], secrets[n], err = iss.Create(t.Context(), Draft{}); err != nil {
			t.Fatal(err)
		}
	}
	if u := lastUse(t, iss, all[0]); !u.At.IsZero() || !u.Secret(all[0].Hashes[0].id()).IsZero() {
		t.Errorf("before it is used: %+v", u)
	}
	others := func() string {
		return fmt.Sprint(slices.DeleteFunc(keys(t, st, ""), func(key string) bool {
			return strings.HasPrefix(key, usedPrefix) || strings.HasPrefix(key, byUse)
		}))
	}
	before := others()
	st.commits.Store(0)
	for range 3 {
		for n := range all {
			useSecret(t, iss, all[n].ClientID, secrets[n])
		}
	}
	shown := lastUse(t, iss, all[0])
	if at := shown.Secret(all[0].Hashes[0].id()); at.IsZero() || !at.Equal(shown.At) {
		t.Errorf("before it is written: %+v", shown)
	}
	if n := st.commits.Load(); n != 0 {
		t.Errorf("%d writes for tokens, want none", n)
	}
	if iss.registry.uses.lag(time.Now().Add(time.Second)) < time.Second {
		t.Error("nothing waits to be written")
	}
	if err := iss.registry.flushUses(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := st.commits.Load(); n != 2 {
		t.Errorf("%d writes for %d clients, want 2", n, clients)
	}
	if lag := iss.registry.uses.lag(time.Now().Add(time.Second)); lag != 0 {
		t.Errorf("the lag is %v when all is written", lag)
	}
	if after := lastUse(t, iss, all[0]); fmt.Sprint(after) != fmt.Sprint(shown) {
		t.Errorf("when it is written: %+v, before %+v", after, shown)
	}
	if c := stored(t, iss, all[0].ClientID); c.Revision() != all[0].Revision() {
		t.Errorf("a use has made the credential %s of %s", c.Revision(), all[0].Revision())
	}
	if others() != before || len(keys(t, st, usedPrefix)) != clients {
		t.Errorf("the store has %d records of uses, and others than before", len(keys(t, st, usedPrefix)))
	}
	_ = iss.registry.flushUses(t.Context())
	if n := st.commits.Load(); n != 2 {
		t.Error("nothing was used, and something is written")
	}
}

func TestAUseIsOfTheSecretThatWasUsed(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 100)
	c, _, err := iss.Create(t.Context(), Draft{})
	if err != nil {
		t.Fatal(err)
	}
	second, secret, err := iss.AddSecret(t.Context(), "", c.ClientID, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := iss.Issue(t.Context(), tokenRequest(c.ClientID, "wrong")); err == nil {
		t.Fatal("a wrong secret is right")
	}
	c = known(t, iss, c.ClientID)
	first := c.Hashes[0].id()
	if u := lastUse(t, iss, c); !u.At.IsZero() {
		t.Errorf("a wrong secret counts as a use: %+v", u)
	}
	for range 2 { // in memory, and in the store
		useSecret(t, iss, c.ClientID, secret)
		if u := lastUse(t, iss, c); u.At.IsZero() || u.Secret(second.ID) != u.At || !u.Secret(first).IsZero() {
			t.Errorf("the uses are %+v", u)
		}
		if err := iss.registry.flushUses(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := iss.DeleteSecret(t.Context(), "", c.ClientID, first); err != nil {
		t.Fatal(err)
	}
	useSecret(t, iss, c.ClientID, secret)
	if err := iss.DeleteSecret(t.Context(), "", c.ClientID, second.ID); !errors.Is(err, ErrLastSecret) {
		t.Fatal(err)
	}
	if _, _, err := iss.AddSecret(t.Context(), "", c.ClientID, 0); err != nil {
		t.Fatal(err)
	}
	if err := iss.registry.flushUses(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, record, _ := readUse(t.Context(), iss.store, c.ClientID); len(record.Secrets) != 0 || record.At == 0 {
		t.Errorf("the record holds %+v, and the secrets are gone", record)
	}
}

func TestUsesSurviveAnEndOfTheStoreAndAFailureToWrite(t *testing.T) {
	dir := t.TempDir()
	a := newTestApp(t, dir, "")
	iss, err := a.Open()
	if err != nil {
		t.Fatal(err)
	}
	c, secret, _ := clientWithToken(t, iss)
	used := lastUse(t, iss, c)
	next := newTestApp(t, dir, "")
	if err := next.Start(); err != nil { // a reload
		t.Fatal(err)
	}
	if err := a.Cleanup(); err != nil {
		t.Fatal(err)
	}
	iss, _ = next.Open()
	if again := lastUse(t, iss, c); again.At != used.At {
		t.Errorf("after a reload %v, before %v", again.At, used.At)
	}
	if err := next.Cleanup(); err != nil { // closes the store
		t.Fatal(err)
	}
	last := newTestApp(t, dir, "")
	if iss, err = last.Open(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = last.Cleanup() }()
	if again := lastUse(t, iss, c); !again.At.Equal(used.At) {
		t.Errorf("after a restart %v, before %v", again.At, used.At)
	}

	st := &countingStore{Store: iss.registry.store, refuses: store.ErrFull}
	iss.registry.store = st
	time.Sleep(2 * time.Millisecond)
	useSecret(t, iss, c.ClientID, secret)
	used = lastUse(t, iss, c)
	if err := iss.registry.flushUses(t.Context()); !errors.Is(err, store.ErrFull) {
		t.Errorf("a full store: %v", err)
	}
	if iss.registry.uses.lag(time.Now().Add(time.Minute)) < time.Minute || lastUse(t, iss, c).At != used.At {
		t.Error("what could not be written is lost")
	}
	st.refuses = errors.New("the disk is broken")
	var file bytes.Buffer
	if err := iss.WriteBackup(t.Context(), &file); err != nil {
		t.Errorf("a backup of a store that takes nothing more: %v", err)
	}
	if saved, err := ReadBackup(&file); err != nil || saved.Active != 1 {
		t.Errorf("it holds %+v, %v", saved, err)
	}
	st.refuses = nil
	st.beforeCommit = func() { // the credential changes between the reading and the writing
		name := "x"
		if _, err := iss.Change(t.Context(), "", c.ClientID, Patch{Name: named(&name)}); err != nil {
			t.Error(err)
		}
	}
	if err := iss.registry.flushUses(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, record, err := readUse(t.Context(), st, c.ClientID); err != nil || record.At != used.At.UnixMilli() {
		t.Errorf("the store has %+v, %v, want %v", record, err, used.At)
	}
}

func TestUsesAreCollectedUpToABound(t *testing.T) {
	u := newUses()
	for n := range manyUses {
		u.note(fmt.Sprint(n), hashedSecret{}, time.Now())
	}
	if len(u.many) != 0 {
		t.Error("the store is to be told before there are many")
	}
	for n := range maxUses + 2 {
		u.note(fmt.Sprint(n), hashedSecret{}, time.Now())
	}
	if u.pending.len() != maxUses || len(u.many) != 1 {
		t.Errorf("%d uses are kept, and the store is to be told: %d", u.pending.len(), len(u.many))
	}
	u.note("0", hashedSecret{}, time.Now().Add(time.Hour)) // it is known
	if at := u.pending.get(useKey{clientID: "0"}); at < time.Now().Add(time.Minute).UnixMilli() {
		t.Error("a known client's use is not noted")
	}
}

func TestAFlushRestsAfterEachBatchAndOthersNeedNotWaitForIt(t *testing.T) {
	st := &countingStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, st, time.Hour, 100)
	const credentials = 2*useBatch + 1
	for range credentials {
		c, secret, err := iss.Create(t.Context(), Draft{})
		if err != nil {
			t.Fatal(err)
		}
		useSecret(t, iss, c.ClientID, secret)
	}
	written := func() int { return len(keys(t, iss.store, usedPrefix)) }
	var rests []int
	const slow = 50 * time.Millisecond // the first commit
	st.beforeCommit = func() { time.Sleep(slow) }
	err := iss.registry.flushUsesWith(t.Context(), func(took time.Duration) bool {
		if len(rests) == 0 && took < slow || took <= 0 {
			t.Errorf("a batch took %v", took)
		}
		if rests = append(rests, written()); len(rests) == 2 {
			if err := iss.registry.flushUses(t.Context()); err != nil { // a backup, which waits for nobody
				t.Error(err)
			}
		}
		return true
	})
	if want := []int{useBatch, 2 * useBatch}; err != nil || !slices.Equal(rests, want) || written() != credentials {
		t.Errorf("%v: with %d of %d written it rests, want %d", err, rests, written(), want)
	}
	if rest, least := iss.registry.useRest(time.Millisecond), 100*time.Millisecond/time.Duration(runtime.GOMAXPROCS(0)); rest <= least {
		t.Errorf("after 1 ms of one processor it rests for %v: that is more than a hundredth of all", rest)
	}
	if rest := iss.registry.useRest(time.Hour); rest > time.Minute { // the disk was slow
		t.Errorf("after an hour it rests for %v", rest)
	}
	if !iss.registry.restFromUses(0) {
		t.Error("it is told to end, though the store is open")
	}
	iss.registry.uses.note("a client", hashedSecret{}, time.Now())
	for n := range useBatch {
		iss.registry.uses.note(fmt.Sprint(n), hashedSecret{}, time.Now())
	}
	if err := iss.registry.flushUsesWith(t.Context(), func(time.Duration) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if left, _ := iss.registry.uses.some(); len(left) != 1 {
		t.Errorf("it was told to end, and %d uses are left", len(left))
	}
}

func TestAStoreThatTakesNothingIsNotTriedWithEachUse(t *testing.T) {
	st := &countingStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, st, time.Hour, 100)
	st.refuses = store.ErrFull
	st.commits.Store(0)
	for n := range manyUses {
		iss.registry.uses.note(fmt.Sprint(n), hashedSecret{}, time.Now())
	}
	for deadline := time.Now().Add(10 * time.Second); st.commits.Load() == 0 && time.Now().Before(deadline); {
		iss.registry.uses.note("one", hashedSecret{}, time.Now())
	}
	for range 100 {
		time.Sleep(10 * time.Millisecond)
		iss.registry.uses.note("another", hashedSecret{}, time.Now())
	}
	if n := st.commits.Load(); n != 1 {
		t.Errorf("the store is tried %d times, want 1", n)
	}
}

func TestAUseLeavesWithItsCredentialAndIsInTheBackup(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 100)
	gone, _, _ := clientWithToken(t, iss)
	kept, _, _ := clientWithToken(t, iss)
	var file bytes.Buffer
	if err := iss.WriteBackup(t.Context(), &file); err != nil {
		t.Fatal(err)
	}
	other := openTestStore(t, filepath.Join(t.TempDir(), "other"))
	if err := backup.Fill(t.Context(), other, &file, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if n := len(keys(t, other, usedPrefix)); n != 2 {
		t.Errorf("the backup holds the uses of %d credentials, want 2", n)
	}
	if err := iss.Revoke(t.Context(), "", gone.ClientID); err != nil {
		t.Fatal(err)
	}
	if err := iss.registry.sweep(t.Context(), time.Now().Add(2*DefaultRetention)); err != nil {
		t.Fatal(err)
	}
	if left := keys(t, st, usedPrefix); !slices.Equal(left, []string{usedKey(kept.ClientID)}) {
		t.Errorf("the uses of %q are left", left)
	}
	iss.registry.uses.note(gone.ClientID, hashedSecret{}, time.Now()) // late
	if err := iss.registry.flushUses(t.Context()); err != nil || len(keys(t, st, usedPrefix)) != 1 {
		t.Errorf("%v: the use of what is gone is kept", err)
	}
}

// A record that can't be read, and a credential that changes all the time, keep the
// uses of nobody else from the store.
func TestAUseThatCannotBeWrittenIsInNobodysWay(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	hooked := &hookedStore{Store: st}
	iss := newTestIssuer(t, hooked, time.Hour, 100)
	var all []*Credential
	for range 20 {
		c, secret, err := iss.Create(t.Context(), Draft{})
		if err != nil {
			t.Fatal(err)
		}
		useSecret(t, iss, c.ClientID, secret)
		all = append(all, c)
	}
	damaged, busy := all[3], all[7]
	put := store.Batch{Puts: []store.Record{{Key: usedKey(damaged.ClientID), Value: []byte("no JSON")}}}
	if err := st.Commit(t.Context(), put); err != nil {
		t.Fatal(err)
	}
	changes := 0
	hooked.afterGet = func(key string) {
		if key == usedKey(busy.ClientID) { // after its credential was read
			changes++
			if _, err := iss.Change(t.Context(), "", busy.ClientID, Patch{RequestsPerSecond: named(changes)}); err != nil {
				t.Error(err)
			}
		}
	}
	if err := iss.registry.flushUses(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		_, record, err := readUse(t.Context(), st, c.ClientID)
		switch {
		case c == damaged:
			if !errors.Is(err, errUnreadable) {
				t.Errorf("what can't be read is overwritten: %v", err)
			}
		case c == busy:
			if record.At != 0 {
				t.Error("the credential did not change between: the test tests nothing")
			}
		case err != nil || record.At == 0:
			t.Errorf("a use was not written: %v", err)
		}
	}
	hooked.afterGet = func(string) {}
	if err := iss.registry.flushUses(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, record, err := readUse(t.Context(), st, busy.ClientID); err != nil || record.At == 0 {
		t.Errorf("the use of the credential that changed is lost: %v", err)
	}
}
