package issuer

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// asCaller is the credential as it manages others with all of its scopes.
func asCaller(c *Credential) Caller { return Caller{c, c.Scopes, c.Epoch} }

// newManager creates a credential that manages others, and may make managers.
func newManager(t *testing.T, iss *Issuer, account string) *Credential {
	t.Helper()
	c, _, err := iss.Create(t.Context(), Draft{Account: account, Scopes: []string{ScopeWrite, "read"}, Grantable: []string{ScopeWrite, "read"}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A creation that was admitted before its creator was revoked must not leave a
// credential that nobody looks for any more.
func TestWhoIsRevokedWhileItCreatesCreatesNothing(t *testing.T) {
	hooked := &hookedStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, hooked, time.Hour, 8)
	creator := newManager(t, iss, "shop")
	var revoked atomic.Bool
	hooked.afterGet = func(key string) {
		if key == credentialKey(creator.ClientID) && revoked.CompareAndSwap(false, true) {
			if err := iss.Revoke(context.Background(), "", creator.ClientID); err != nil {
				t.Error(err)
			}
		}
	}
	if _, _, err := iss.CreateFor(t.Context(), asCaller(creator), Draft{}); !errors.Is(err, ErrCallerEnded) || !revoked.Load() {
		t.Errorf("CreateFor = %v, want %v", err, ErrCallerEnded)
	}
	if all, err := iss.List(t.Context(), "shop"); err != nil || len(all) != 0 {
		t.Errorf("List = %v, %v, want none", all, err)
	}
}

// Managers make managers as fast as they can, while all that one of them has
// created is revoked.
func TestNothingIsLeftOfAFamilyThatGrowsWhileItIsRevoked(t *testing.T) {
	for name, selection := range map[string]func(root *Credential) Selection{
		"of an account": func(root *Credential) Selection { return Selection{Account: root.Account} },
		"of a creator":  func(root *Credential) Selection { return Selection{CreatedBy: root.ClientID} },
	} {
		t.Run(name, func(t *testing.T) {
			iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 8)
			root := newManager(t, iss, "shop")
			var all sync.WaitGroup
			var created atomic.Int64
			for range 8 {
				child, _, err := iss.CreateFor(t.Context(), asCaller(root), Draft{Scopes: []string{ScopeWrite}, Grantable: []string{ScopeWrite}})
				if err != nil {
					t.Fatal(err)
				}
				all.Go(func() {
					for last := child; ; created.Add(1) {
						next, _, err := iss.CreateFor(context.Background(), asCaller(last), Draft{Scopes: []string{ScopeWrite}, Grantable: []string{ScopeWrite}})
						if err != nil {
							if !errors.Is(err, ErrCallerEnded) {
								t.Error(err)
							}
							return
						}
						if created.Load()%3 == 0 {
							last = next
						}
					}
				})
			}
			for created.Load() < 50 {
				time.Sleep(time.Millisecond)
			}
			n, err := iss.RevokeAll(t.Context(), "shop", selection(root), root.ClientID, func(context.Context, *Credential) {})
			if err != nil || n < 50 {
				t.Fatalf("RevokeAll = %d, %v", n, err)
			}
			all.Wait()
			left, err := iss.List(t.Context(), "shop")
			if err != nil || len(left) != 1 || left[0].ClientID != root.ClientID {
				t.Errorf("%d are left of %d, %v", len(left), n, err)
			}
		})
	}
}

// The one that asks goes on working: what it creates meanwhile is not what it
// wants revoked.
func TestARevocationOfManyLeavesWhatIsCreatedMeanwhileByOneThatStays(t *testing.T) {
	hooked := &hookedStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, hooked, time.Hour, 8)
	root := newManager(t, iss, "shop")
	for range 3 {
		if _, _, err := iss.CreateFor(t.Context(), asCaller(root), Draft{}); err != nil {
			t.Fatal(err)
		}
	}
	var made atomic.Bool
	hooked.afterGet = func(key string) {
		if strings.HasPrefix(key, credentialPrefix) && made.CompareAndSwap(false, true) {
			if _, _, err := iss.CreateFor(context.Background(), asCaller(root), Draft{}); err != nil {
				t.Error(err)
			}
		}
	}
	if n, err := iss.RevokeAll(t.Context(), "shop", Selection{CreatedBy: root.ClientID}, "", func(context.Context, *Credential) {}); n != 3 || err != nil || !made.Load() {
		t.Errorf("RevokeAll = %d, %v, want 3", n, err)
	}
	if left, err := iss.List(t.Context(), "shop"); err != nil || len(left) != 2 {
		t.Errorf("%d are left, %v, want the one that asked and what it created meanwhile", len(left), err)
	}
}
