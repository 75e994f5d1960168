package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

func named[T any](value T) Field[T] { return Field[T]{true, value} }

func TestChangesAtOnceLoseNone(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 8)
	c, _, _ := clientWithToken(t, iss)
	name, expires := "a", time.Now().Add(time.Hour)
	changes := []Patch{
		{Name: named(&name)},
		{Expires: named(expires)},
		{Scopes: named([]string{"read"})},
		{Audiences: named([]string{"https://a.test"})},
		{Grantable: named([]string{"b"})},
		{TokenLifetime: named(time.Minute)},
		{Claims: named(json.RawMessage(`{"a":1}`))},
		{Claims: named(json.RawMessage(`{"b":1}`))},
		{Enabled: named(false)},
	}
	var all sync.WaitGroup
	for _, change := range changes {
		all.Go(func() {
			if _, err := iss.Change(context.Background(), "", c.ClientID, change); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for what, got := range map[string]*Credential{"memory": known(t, iss, c.ClientID), "the store": stored(t, iss, c.ClientID)} {
		has := fmt.Sprintf("%s %v %v %v %v %v %s %v", *got.Name, got.Expires.Equal(shown(expires)), got.Scopes, got.Audiences, got.Grantable, got.TokenLifetime, got.Claims, got.Disabled)
		if has != `a true [read] [https://a.test] [b] 1m0s {"a":1,"b":1} true` {
			t.Errorf("%s has %s", what, has)
		}
		if want := uint64(1 + len(changes)); got.Version != want {
			t.Errorf("%s has version %d, want %d", what, got.Version, want)
		}
	}
}

func known(t *testing.T, iss *Issuer, clientID string) *Credential {
	t.Helper()
	c, err := iss.registry.credential(t.Context(), clientID)
	if err != nil {
		t.Fatal(err)
	}
	return c.Credential
}

func stored(t *testing.T, iss *Issuer, clientID string) *Credential {
	t.Helper()
	c, err := iss.registry.read(t.Context(), clientID)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Of those that all believe to change the same revision, one may.
func TestOfChangesToOneRevisionOneIsMade(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 8)
	c, _, _ := clientWithToken(t, iss)
	var all sync.WaitGroup
	var made, refused atomic.Int64
	for n := range 20 {
		name := fmt.Sprint(n)
		all.Go(func() {
			switch _, err := iss.Change(context.Background(), "", c.ClientID, Patch{Name: named(&name), Revisions: []string{c.Revision()}}); {
			case err == nil:
				made.Add(1)
			case errors.Is(err, ErrChanged):
				refused.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	all.Wait()
	if made.Load() != 1 || refused.Load() != 19 {
		t.Errorf("%d were made and %d refused", made.Load(), refused.Load())
	}
}

func TestAChangeUndoesNoRevocation(t *testing.T) {
	hooked := &hookedStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, hooked, time.Hour, 8)
	c, secret, token := clientWithToken(t, iss)
	var revoked atomic.Bool
	hooked.afterGet = func(key string) { // the change has read it
		if key == credentialKey(c.ClientID) && revoked.CompareAndSwap(false, true) {
			if err := iss.Revoke(context.Background(), "", c.ClientID); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := iss.Change(t.Context(), "", c.ClientID, Patch{Enabled: named(true), Expires: named(time.Now().Add(time.Hour))}); !errors.Is(err, ErrNotFound) {
		t.Errorf("Change = %v, want %v", err, ErrNotFound)
	}
	if _, err := iss.Verify(t.Context(), token); !isRefusal(err) {
		t.Errorf("Verify = %v, want a refusal", err)
	}
	again := newTestIssuer(t, hooked, time.Hour, 8)
	if _, err := again.Issue(t.Context(), tokenRequest(c.ClientID, secret)); err == nil {
		t.Error("the revocation was lost")
	}
	if left := keys(t, hooked, listedPrefix); len(left) != 0 {
		t.Errorf("it is listed: %v", left)
	}
}

// Who loses a right while it hands it on has not handed it on.
func TestNobodyGivesByAChangeWhatWasTakenMeanwhile(t *testing.T) {
	hooked := &hookedStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, hooked, time.Hour, 8)
	manager := newManager(t, iss, "shop")
	c, _, err := iss.Create(t.Context(), Draft{Account: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	var taken atomic.Bool
	hooked.afterGet = func(key string) {
		if key == credentialKey(manager.ClientID) && taken.CompareAndSwap(false, true) {
			if _, err := iss.Change(context.Background(), "", manager.ClientID, Patch{Grantable: named([]string{ScopeWrite})}); err != nil {
				t.Error(err)
			}
		}
	}
	_, err = iss.ChangeFor(t.Context(), asCaller(manager), c.ClientID, Patch{Scopes: named([]string{"read"})})
	if granted, ok := errors.AsType[*GrantError](err); !ok || granted.Field != "scopes" || !taken.Load() {
		t.Errorf("ChangeFor = %v, want a refusal of the scopes", err)
	}
	if err := iss.Revoke(t.Context(), "", manager.ClientID); err != nil {
		t.Fatal(err)
	}
	if _, err := iss.ChangeFor(t.Context(), asCaller(manager), c.ClientID, Patch{}); !errors.Is(err, ErrCallerEnded) {
		t.Errorf("ChangeFor = %v, want %v", err, ErrCallerEnded)
	}
}

// What is found by the time of its end is found by the one that it has now.
func TestTheIndexOfWhatHasEndedFollowsTheExpiry(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 8)
	iss.registry.retention.Store(0)
	c, secret, err := iss.Create(t.Context(), Draft{Expires: time.Now().Add(2 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	longAgo := time.Now().Add(100 * 24 * time.Hour)
	sweep := func() {
		t.Helper()
		if err := iss.registry.sweep(t.Context(), longAgo); err != nil {
			t.Fatal(err)
		}
	}
	for _, expires := range []time.Time{longAgo.Add(time.Hour), longAgo.Add(2 * time.Hour), longAgo.Add(2*time.Hour + time.Millisecond), {}, longAgo.Add(time.Hour)} {
		if c, err = iss.Change(t.Context(), "", c.ClientID, Patch{Expires: named(expires)}); err != nil {
			t.Fatal(err)
		}
		var want []string
		if !expires.IsZero() {
			want = []string{endedKey(expires, c.ClientID)}
		}
		if got := keys(t, st, endedPrefix); !slices.Equal(got, want) {
			t.Errorf("after it was moved to %v, the index holds %v", expires, got)
		}
		sweep()
		if _, err := iss.Issue(t.Context(), tokenRequest(c.ClientID, secret)); err != nil {
			t.Errorf("after it was moved to %v: %v", expires, err)
		}
	}
	if _, err = iss.Change(t.Context(), "", c.ClientID, Patch{Expires: named(time.Now().Add(time.Hour))}); err != nil {
		t.Fatal(err)
	}
	sweep()
	if left := append(keys(t, st, endedPrefix), append(keys(t, st, credentialPrefix), keys(t, st, listedPrefix)...)...); len(left) != 0 {
		t.Errorf("what has ended long ago is still there: %v", left)
	}
}

// The sweep has found a credential to have ended long ago, and then it is moved.
func TestACredentialThatIsRevivedIsNotRemoved(t *testing.T) {
	hooked := &hookedStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, hooked, time.Hour, 8)
	iss.registry.retention.Store(0)
	c, secret, err := iss.Create(t.Context(), Draft{Expires: time.Now().Add(time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	later := time.Now().Add(24 * time.Hour)
	var moved atomic.Bool
	hooked.afterGet = func(key string) {
		if strings.HasPrefix(key, credentialPrefix) && moved.CompareAndSwap(false, true) {
			if _, err := iss.Change(context.Background(), "", c.ClientID, Patch{Expires: named(later.Add(time.Hour))}); err != nil {
				t.Error(err)
			}
		}
	}
	if err := iss.registry.sweep(t.Context(), later); err != nil && !errors.Is(err, store.ErrConflict) {
		t.Fatal(err)
	}
	if _, err := iss.Issue(t.Context(), tokenRequest(c.ClientID, secret)); err != nil || !moved.Load() {
		t.Errorf("Issue = %v", err)
	}
	if got := keys(t, hooked, endedPrefix); !slices.Equal(got, []string{endedKey(later.Add(time.Hour), c.ClientID)}) {
		t.Errorf("the index holds %v", got)
	}
}

// Whoever has seen a credential disabled never sees a token from before accepted
// again, while others enable, disable, and obtain tokens.
func TestNoTokenOutlivesThatItsCredentialWasDisabled(t *testing.T) {
	hooked := &hookedStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, hooked, time.Hour, 8)
	c, secret, err := iss.Create(t.Context(), Draft{})
	if err != nil {
		t.Fatal(err)
	}
	tokens := make(chan string, 100)
	stop := make(chan struct{})
	var minters sync.WaitGroup
	for range 4 {
		minters.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if answer, err := iss.Issue(context.Background(), tokenRequest(c.ClientID, secret)); err == nil {
					select {
					case tokens <- answer.Token:
					default:
					}
				}
			}
		})
	}
	var old []string
	for range 10 {
		time.Sleep(5 * time.Millisecond)
		for range len(tokens) {
			old = append(old, <-tokens)
		}
		if _, err := iss.Change(t.Context(), "", c.ClientID, Patch{Enabled: named(false)}); err != nil {
			t.Fatal(err)
		}
		for _, token := range old {
			if _, err := iss.Verify(t.Context(), token); !isRefusal(err) {
				t.Fatalf("a token from before: %v, want a refusal", err)
			}
		}
		if _, err := iss.Change(t.Context(), "", c.ClientID, Patch{Enabled: named(true)}); err != nil {
			t.Fatal(err)
		}
		for _, token := range old {
			if _, err := iss.Verify(t.Context(), token); !isRefusal(err) {
				t.Fatalf("a token from before, after enabling: %v, want a refusal", err)
			}
		}
	}
	close(stop)
	minters.Wait()
	if len(old) < 20 {
		t.Errorf("only %d tokens: the test tests nothing", len(old))
	}
}

// A token that was admitted before its credential lost a right asks with that
// right still.
func TestATokenFromBeforeAChangeGivesNothing(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 8)
	c, secret, err := iss.Create(t.Context(), Draft{Scopes: []string{ScopeAdmin, ScopeWrite, "read"}})
	if err != nil {
		t.Fatal(err)
	}
	issued, err := iss.Issue(t.Context(), tokenRequest(c.ClientID, secret))
	if err != nil {
		t.Fatal(err)
	}
	access, err := iss.Verify(t.Context(), issued.Token)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := iss.Change(t.Context(), "", c.ClientID, Patch{Scopes: named([]string{ScopeWrite, "read"})}); err != nil {
		t.Fatal(err)
	}
	caller, err := access.Caller(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := iss.CreateFor(t.Context(), caller, Draft{Account: "other"}); !errors.Is(err, ErrCallerEnded) {
		t.Errorf("CreateFor = %v, want %v", err, ErrCallerEnded)
	}
}

// Its expiry can be moved back, and then the token would count again.
func TestATokenOfAnExpiredCredentialCanBeRevoked(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 8)
	c, _, token := clientWithToken(t, iss)
	expires := time.Now().Add(50 * time.Millisecond)
	if _, err := iss.Change(t.Context(), "", c.ClientID, Patch{Expires: named(expires)}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(expires) + time.Millisecond)
	if reason := refused(t, iss, token); reason != reasonCredentialExpired {
		t.Fatalf("refused as %q", reason)
	}
	if _, err := iss.RevokeToken(t.Context(), Caller{Credential: c}, token); err != nil {
		t.Fatal(err)
	}
	if _, err := iss.Change(t.Context(), "", c.ClientID, Patch{Expires: named(time.Time{})}); err != nil {
		t.Fatal(err)
	}
	again := newTestIssuer(t, st, time.Hour, 8)
	for what, iss := range map[string]*Issuer{"here": iss, "after a restart": again} {
		if reason := refused(t, iss, token); reason != reasonRevoked {
			t.Errorf("%s: refused as %q", what, reason)
		}
	}
}
