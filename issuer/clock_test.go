package issuer

import (
	"testing"
	"time"
)

func TestAClockThatIsSetBackBringsNoExpiredTokenBack(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 100)
	_, _, token := clientWithToken(t, iss)
	access, err := iss.Verify(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	at := func(when time.Time) error {
		a := access
		a.at = when.UnixMilli()
		return iss.refuse(&a)
	}
	if err := at(access.Token.Expires().Add(-time.Second)); err != nil {
		t.Fatalf("before it expires: %v", err)
	}
	if err := at(access.Token.Expires().Add(time.Minute)); err == nil {
		t.Fatal("an expired token is accepted")
	}
	if err := at(access.Token.Expires().Add(time.Minute - time.Hour)); err == nil || err.Error() != "token refused: expired" {
		t.Errorf("with a clock that was set back: %v", err)
	}
	time.Sleep(time.Until(access.Token.IssuedAt().Add(time.Second))) // the next second
	if _, _, token := clientWithToken(t, iss); refusedOrNot(t, iss, token) != nil {
		t.Error("a token that is issued after that is refused")
	}
}

// Where tokens live shorter than that, all new ones have an expiry that was
// refused before.
func TestAClockThatIsSetBackByMoreThanALifetimeLetsNewTokensCount(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), 5*time.Minute, 100)
	_, _, token := clientWithToken(t, iss)
	iss.registry.refuseExpiry(time.Now().Add(time.Hour).UnixMilli()) // the clock was an hour ahead
	if reason := refused(t, iss, token); reason != "expired" {
		t.Errorf("a token from before is refused as %q", reason)
	}
	_, _, token = clientWithToken(t, iss)
	access, err := iss.Verify(t.Context(), token)
	if err != nil {
		t.Fatalf("a token that is issued after it: %v", err)
	}
	access.at = access.Token.expires
	if iss.settle(t.Context(), token, &access) == nil {
		t.Error("it does not expire")
	}
	if reason := refused(t, iss, token); reason != "expired" {
		t.Errorf("when it has, and the clock is set back again, it is refused as %q", reason)
	}
	_, _, token = clientWithToken(t, iss)
	empty(iss.registry.verified)
	if reason := refused(t, iss, token); reason != "expired" {
		t.Errorf("one that is not remembered is refused as %q", reason)
	}
}

func refusedOrNot(t *testing.T, iss *Issuer, token string) error {
	t.Helper()
	_, err := iss.Verify(t.Context(), token)
	return err
}

func TestAClockThatIsSetBackBringsNoUsedAssertionBack(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 100)
	now := time.Now()
	expires := now.Add(time.Minute)
	first := func(now time.Time) bool {
		first, err := iss.registry.useOnce(t.Context(), "client", "id", expires, now)
		return first && err == nil
	}
	if !first(now) {
		t.Fatal("the first use is refused")
	}
	if err := iss.registry.sweep(t.Context(), expires.Add(clockSetBack-time.Second)); err != nil {
		t.Fatal(err)
	}
	if first(expires.Add(-time.Second)) {
		t.Error("used twice")
	}
	if err := iss.registry.sweep(t.Context(), expires.Add(clockSetBack+time.Second)); err != nil || len(iss.registry.used) > 0 {
		t.Errorf("%d are remembered for ever, %v", len(iss.registry.used), err)
	}
}
