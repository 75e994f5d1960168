package issuer

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// watcher counts what it is told.
type watcher struct {
	Watch
	expired, revoked, lasts atomic.Int64
}

func (w *watcher) Lasts()        { w.lasts.Add(1) }
func (w *watcher) TokenExpired() { w.expired.Add(1) }
func (w *watcher) TokenRevoked() { w.revoked.Add(1) }

// accessFor issues a token and returns what it gives access to.
func accessFor(t *testing.T, iss *Issuer, c *Credential, secret string) (Access, string) {
	t.Helper()
	issued, err := iss.Issue(t.Context(), tokenRequest(c.ClientID, secret))
	if err != nil {
		t.Fatal(err)
	}
	access, err := iss.Verify(t.Context(), issued.Token)
	if err != nil {
		t.Fatal(err)
	}
	return access, issued.Token
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not after 20 s", what)
		}
	}
}

func TestAWatcherIsToldOfItsOwnTokenAlone(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 8)
	c, secret, err := iss.Create(t.Context(), Draft{})
	if err != nil {
		t.Fatal(err)
	}
	var watchers [3]watcher
	var tokens [3]string
	for n := range watchers {
		var access Access
		access, tokens[n] = accessFor(t, iss, c, secret)
		if err := access.Watch(t.Context(), &watchers[n].Watch, &watchers[n]); err != nil {
			t.Fatal(err)
		}
	}
	watchers[2].Stop()
	if _, err := iss.RevokeToken(t.Context(), Caller{Credential: c}, tokens[0]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the revoked token's watcher is told", func() bool { return watchers[0].revoked.Load() > 0 })
	if watchers[1].revoked.Load() != 0 {
		t.Error("the watcher of another token was told")
	}
	if err := iss.Revoke(t.Context(), "", c.ClientID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the revoked credential's watcher is told", func() bool { return watchers[1].revoked.Load() > 0 })
	if watchers[2].revoked.Load() != 0 {
		t.Error("a watcher was told after it had stopped")
	}
}

func TestAWatchThatARevocationOvertakesIsRefused(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 8)
	c, secret, err := iss.Create(t.Context(), Draft{})
	if err != nil {
		t.Fatal(err)
	}
	byToken, token := accessFor(t, iss, c, secret)
	byCredential, _ := accessFor(t, iss, c, secret)
	if _, err := iss.RevokeToken(t.Context(), Caller{Credential: c}, token); err != nil {
		t.Fatal(err)
	}
	if err := byToken.Watch(t.Context(), new(Watch), new(watcher)); !isRefusal(err) {
		t.Errorf("watching a token that was revoked meanwhile: %v, want a refusal", err)
	}
	if err := iss.Revoke(t.Context(), "", c.ClientID); err != nil {
		t.Fatal(err)
	}
	if err := byCredential.Watch(t.Context(), new(Watch), new(watcher)); !isRefusal(err) {
		t.Errorf("watching a token whose credential was revoked meanwhile: %v, want a refusal", err)
	}
}

func TestAWatcherIsToldOnceThatItLasts(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 8)
	c, secret, err := iss.Create(t.Context(), Draft{})
	if err != nil {
		t.Fatal(err)
	}
	access, _ := accessFor(t, iss, c, secret)
	var lasting, short, later watcher
	watch := func(w *watcher) {
		if err := access.Watch(t.Context(), &w.Watch, w); err != nil {
			t.Fatal(err)
		}
	}
	watch(&lasting)
	watch(&short)
	short.Stop()
	eventually(t, "it is told", func() bool { return lasting.lasts.Load() > 0 })
	eventually(t, "nobody looks any more", func() bool { return !iss.registry.aging.Load() })
	watch(&later)
	eventually(t, "a later one is told", func() bool { return later.lasts.Load() > 0 })
	if lasting, short := lasting.lasts.Load(), short.lasts.Load(); lasting != 1 || short != 0 {
		t.Errorf("one that lasts was told %d times, and one that was stopped %d times", lasting, short)
	}
}

// Ten thousand streams take no goroutine while they run, and one timer.
func TestWatchesCostNoGoroutine(t *testing.T) {
	const streams = 10_000
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), 2*time.Second, 8)
	c, secret, err := iss.Create(t.Context(), Draft{})
	if err != nil {
		t.Fatal(err)
	}
	access, _ := accessFor(t, iss, c, secret)
	before := runtime.NumGoroutine()
	all := make([]watcher, streams)
	for n := range all {
		if err := access.Watch(t.Context(), &all[n].Watch, &all[n]); err != nil {
			t.Fatal(err)
		}
	}
	if more := runtime.NumGoroutine() - before; more > 3 {
		t.Errorf("%d watches run %d goroutines", streams, more)
	}
	if all[0].expired.Load() != 0 {
		t.Error("a watcher was told before its token expired")
	}
	eventually(t, "all are told that the token expired", func() bool {
		for n := range all {
			if all[n].expired.Load() == 0 {
				return false
			}
		}
		return true
	})
	if time.Now().Before(access.Token.Expires()) {
		t.Error("they were told too early")
	}
	for n := range all {
		all[n].Stop()
	}
	// The timer stops by itself, so that it does not keep what nobody uses.
	list := iss.registry.watchList(access.group)
	eventually(t, "the timer stops", func() bool {
		list.mu.Lock()
		defer list.mu.Unlock()
		return list.first == nil && list.timer == nil
	})
}
