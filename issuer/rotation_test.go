package issuer

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// at is a moment of a store that was opened when the clock showed begin.
func at(begin time.Time, after time.Duration) moment { return moment{begin.Add(after), after} }

// settleAt has the issuer look at its keys at a moment, and returns their phases.
func settleAt(t *testing.T, iss *Issuer, now moment) map[string]KeyPhase {
	t.Helper()
	defer iss.lockKeys()()
	if err := iss.settleKeys(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	keys, err := iss.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	phases := make(map[string]KeyPhase)
	for _, key := range keys {
		phases[key.ID] = key.Phase
	}
	return phases
}

func published(iss *Issuer) (ids []string) {
	for _, key := range iss.KeySet().Keys {
		ids = append(ids, key.ID)
	}
	return ids
}

func TestAKeyIsPublishedBeforeItSignsAndVerifiesAfterIt(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 100)
	_, _, token := clientWithToken(t, iss)
	first := iss.keys().signing.id
	begin := time.Now()

	next, _, err := iss.RotateKey(t.Context())
	if err != nil || next.Phase != KeyNext {
		t.Fatalf("%+v, %v", next, err)
	}
	if again, _, err := iss.RotateKey(t.Context()); err != nil || again.ID != next.ID {
		t.Errorf("a second rotation before the first has ended: %+v, %v, want the same key", again, err)
	}
	for _, after := range []time.Duration{0, keyLead - time.Minute} {
		phases := settleAt(t, iss, at(begin, after))
		if phases[first] != KeySigning || phases[next.ID] != KeyNext || !slices.Equal(published(iss), []string{first, next.ID}) {
			t.Errorf("after %v: %v, published %v", after, phases, published(iss))
		}
	}
	phases := settleAt(t, iss, at(begin, keyLead+time.Minute))
	if phases[first] != KeyRetired || phases[next.ID] != KeySigning || !slices.Equal(published(iss), []string{next.ID, first}) {
		t.Errorf("when it signs: %v, published %v", phases, published(iss))
	}
	if _, err := iss.Verify(t.Context(), token); err != nil {
		t.Errorf("a token that the retired key has signed: %v", err)
	}
	if _, _, token := clientWithToken(t, iss); keyOf(t, token) != next.ID {
		t.Error("the new key does not sign")
	}
	settleAt(t, iss, at(begin, keyLead+time.Minute+time.Hour+2*clockMargin))
	if got := published(iss); !slices.Equal(got, []string{next.ID}) {
		t.Errorf("when the last token of the retired key has expired: published %v", got)
	}
	if reason := refused(t, iss, token); reason != "unknown key" {
		t.Errorf("its token is refused as %q", reason)
	}
	phases = settleAt(t, iss, at(begin, 2*keyRetention))
	if _, kept := phases[first]; kept {
		t.Error("its record is kept for ever")
	}
}

func keyOf(t *testing.T, token string) string {
	t.Helper()
	jws, err := parseCompact(token)
	if err != nil {
		t.Fatal(err)
	}
	return jws.keyID
}

func TestKeysRotateByThemselves(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 100)
	iss.keyPolicy.rotate = 24 * time.Hour
	begin := time.Now()
	signed := []string{iss.keys().signing.id}
	for after := time.Duration(0); after < 73*time.Hour; after += time.Minute {
		settleAt(t, iss, at(begin, after))
		if id := iss.keys().signing.id; id != signed[len(signed)-1] {
			signed = append(signed, id)
			if want := time.Duration(len(signed)-1) * 24 * time.Hour; after < want-time.Minute || after > want+5*time.Minute {
				t.Errorf("key %d signs after %v, want about %v", len(signed), after, want)
			}
		}
	}
	if len(signed) != 4 {
		t.Errorf("%d keys have signed in three days", len(signed))
	}
}

// Who has kept the key set may not know a key yet that a wrong clock has brought
// forward.
func TestAClockThatJumpsSkipsNoPhase(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 100)
	_, _, token := clientWithToken(t, iss)
	iss.keyPolicy.rotate = 24 * time.Hour
	first := iss.keys().signing.id
	begin := time.Now()
	const year = 365 * 24 * time.Hour
	jumped := func(running time.Duration) moment { return moment{begin.Add(year + running), running} }
	settleAt(t, iss, at(begin, 0))

	phases := settleAt(t, iss, jumped(time.Minute))
	if phases[first] != KeySigning || len(phases) != 2 {
		t.Fatalf("when the clock has jumped: %v, want the first to sign and another published", phases)
	}
	phases = settleAt(t, iss, jumped(time.Minute+keyLead-time.Second))
	if phases[first] != KeySigning {
		t.Errorf("before the other was published for long enough: %v", phases)
	}
	phases = settleAt(t, iss, jumped(time.Minute+keyLead))
	if phases[first] != KeyRetired {
		t.Errorf("when it was: %v", phases)
	}
	// The clock is set right: the tokens from before it was wrong are good.
	settleAt(t, iss, at(begin, time.Hour/2))
	if _, err := iss.Verify(t.Context(), token); err != nil {
		t.Errorf("when the clock is set right: %v", err)
	}
}

func TestAClockThatWasAheadProlongsNoPhase(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 100)
	iss.keyPolicy.rotate = 24 * time.Hour
	const year = 365 * 24 * time.Hour
	first := iss.keys().signing.id
	begin := time.Now()
	settleAt(t, iss, moment{begin.Add(year), 0})
	if n := len(published(iss)); n != 2 {
		t.Fatalf("%d keys are published, want the next one too", n)
	}
	settleAt(t, iss, at(begin, time.Minute)) // the clock is set right
	phases := settleAt(t, iss, at(begin, keyLead+time.Minute))
	second := iss.keys().signing.id
	if phases[first] != KeyRetired {
		t.Errorf("when the next was published for long enough: %v", phases)
	}
	settleAt(t, iss, moment{begin.Add(year), time.Hour})
	settleAt(t, iss, moment{begin.Add(year), time.Hour + keyLead}) // a third signs
	settleAt(t, iss, at(begin, 2*time.Hour))
	settleAt(t, iss, at(begin, 4*time.Hour))
	if got := published(iss); len(got) != 1 || got[0] == second {
		t.Errorf("when the last token of the second has expired: published %v, with %s", got, second)
	}
	settleAt(t, iss, at(begin, 2*time.Hour+24*time.Hour-keyLead+time.Minute))
	if n := len(published(iss)); n != 2 {
		t.Errorf("a day after the third began to sign: %d keys are published, want one that follows it", n)
	}
}

func TestAKeyKeepsItsPhaseThroughARestart(t *testing.T) {
	dir := t.TempDir()
	begin := time.Now()
	var first, next string
	for n, step := range []struct {
		name    string
		running time.Duration
		signs   *string
	}{
		{"the first start", 0, &first},
		{"one that does not last", keyLead / 2, &first},
		{"one that does", keyLead + time.Second, &next},
		{"one after it", 0, &next},
	} {
		t.Run(step.name, func(t *testing.T) {
			iss := newTestIssuer(t, openTestStore(t, dir), time.Hour, 100)
			if n == 0 {
				key, _, err := iss.RotateKey(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				first, next = iss.keys().signing.id, key.ID
			}
			clock := begin.Add(time.Duration(n) * keyLead)
			settleAt(t, iss, moment{clock, 0})
			settleAt(t, iss, moment{clock.Add(step.running), step.running})
			if got := iss.keys().signing.id; got != *step.signs {
				t.Errorf("%s signs, want %s", got, *step.signs)
			}
			if got := published(iss); len(got) != 2 {
				t.Errorf("published %v", got)
			}
		})
	}
}

func TestARevokedKeyEndsItsTokensAtOnce(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 100)
	c, secret, token := clientWithToken(t, iss)
	access, err := iss.Verify(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	w := new(watcher)
	if err := access.Watch(t.Context(), &w.Watch, w); err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	draining := &Issuer{policy: iss.policy, store: iss.store, registry: iss.registry} // of a configuration before a reload
	draining.ring.Store(iss.keys())

	revoked := iss.keys().signing.id
	if err := iss.RevokeKey(t.Context(), revoked); err != nil {
		t.Fatal(err)
	}
	for name, iss := range map[string]*Issuer{"the running configuration": iss, "one before it": draining} {
		if reason := refused(t, iss, token); reason != "unknown key" {
			t.Errorf("%s: refused as %q", name, reason)
		}
	}
	eventually(t, "a stream is told", func() bool { return w.revoked.Load() > 0 })
	if err := iss.RevokeKey(t.Context(), revoked); !errors.Is(err, ErrNoKey) {
		t.Errorf("revoked again: %v", err)
	}
	issued, err := iss.Issue(t.Context(), tokenRequest(c.ClientID, secret))
	if err != nil {
		t.Fatalf("no other key signs: %v", err)
	}
	if _, err := iss.Verify(t.Context(), issued.Token); err != nil || slices.Contains(published(iss), revoked) {
		t.Errorf("with another key: %v; published %v", err, published(iss))
	}
	phases := settleAt(t, iss, at(time.Now(), 10*keyRetention))
	if phases[revoked] != KeyRevoked {
		t.Errorf("after a long time: %v", phases)
	}
	again := newTestIssuer(t, st, time.Hour, 100)
	if reason := refused(t, again, token); reason != "unknown key" {
		t.Errorf("after a restart: refused as %q", reason)
	}
}

func TestTheNextKeySignsAtOnceWhereTheFirstIsRevoked(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 100)
	next, _, err := iss.RotateKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := iss.RevokeKey(t.Context(), iss.keys().signing.id); err != nil {
		t.Fatal(err)
	}
	if id := iss.keys().signing.id; id != next.ID {
		t.Errorf("%s signs, want %s", id, next.ID)
	}
}

func TestAKeyIsRevokedThoughNoOtherCanBeMade(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 100)
	c, secret, token := clientWithToken(t, iss)
	full := &fullStore{iss.registry.store, true}
	iss.registry.store = full // that of the issuer takes the revocation
	if err := iss.RevokeKey(t.Context(), iss.keys().signing.id); err != nil {
		t.Fatal(err)
	}
	if reason := refused(t, iss, token); reason != "unknown key" || len(published(iss)) > 0 {
		t.Errorf("its token is refused as %q, published %v", reason, published(iss))
	}
	var refused *TokenError
	if _, err := iss.Issue(t.Context(), tokenRequest(c.ClientID, secret)); err == nil || errors.As(err, &refused) {
		t.Errorf("a token request: %v, want that it can't be answered now", err)
	}
	full.full = false
	settleAt(t, iss, at(time.Now(), 0))
	issued, err := iss.Issue(t.Context(), tokenRequest(c.ClientID, secret))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := iss.Verify(t.Context(), issued.Token); err != nil {
		t.Error(err)
	}
}

func TestARevocationOfAKeyThatOnlyTheStoreKnowsCountsWhenItIsTriedAgain(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 100)
	_, _, token := clientWithToken(t, iss)
	id := iss.keys().signing.id
	records, before, err := readKeyRecords(t.Context(), st)
	if err != nil {
		t.Fatal(err)
	}
	record := records[id]
	record.Revoked = time.Now()
	records[id] = record
	if err := records.commit(t.Context(), st, before); err != nil {
		t.Fatal(err)
	}
	if err := iss.RevokeKey(t.Context(), id); !errors.Is(err, ErrNoKey) {
		t.Errorf("RevokeKey = %v", err)
	}
	if reason := refused(t, iss, token); reason != "unknown key" {
		t.Errorf("its token is refused as %q", reason)
	}
}

// It was replaced for a reason, which may have been that it was stolen.
func TestARetiredKeyDoesNotSignAgainWhereItsSuccessorIsRevoked(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 100)
	first := iss.keys().signing.id
	next, _, err := iss.RotateKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	settleAt(t, iss, at(time.Now(), keyLead+time.Minute))
	if err := iss.RevokeKey(t.Context(), next.ID); err != nil {
		t.Fatal(err)
	}
	if id := iss.keys().signing.id; id == first || id == next.ID {
		t.Error("no new key signs")
	}
	if phases := settleAt(t, iss, at(time.Now(), 0)); phases[first] != KeyRetired {
		t.Errorf("phases: %v", phases)
	}
}

func TestTheServersOwnKeyGoesOnAfterOneOfTheConfigurationWhileItsTokensLive(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 100)
	first := iss.keys().signing.id
	given := makeKey(t, "ES256")
	issuerWith(t, st, &given, time.Now())
	settleAt(t, iss, at(time.Now(), 0)) // that configuration did not come to run
	if id := iss.keys().signing.id; id != first {
		t.Errorf("%s signs, want %s", id, first)
	}
	issuerWith(t, st, &given, time.Now())
	settleAt(t, iss, at(time.Now(), 2*time.Hour))
	if id := iss.keys().signing.id; id == first || slices.Contains(published(iss), first) {
		t.Error("a key is trusted again that was trusted no more")
	}
}

func TestEachAlgorithmSignsAndVerifies(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 100)
	begin := time.Now()
	var tokens []string
	for n, algorithm := range []string{"EdDSA", "RS256", "PS256", "ES256"} {
		iss.keyPolicy.algorithm = algorithm
		settleAt(t, iss, at(begin, time.Duration(n)*time.Hour/4))
		settleAt(t, iss, at(begin, time.Duration(n)*time.Hour/4+keyLead))
		if got := iss.keys().signing.method.Alg(); got != algorithm {
			t.Fatalf("%s signs, want %s", got, algorithm)
		}
		_, _, token := clientWithToken(t, iss)
		tokens = append(tokens, token)
	}
	empty(iss.registry.verified) // they are read
	for _, token := range tokens {
		if _, err := iss.Verify(t.Context(), token); err != nil {
			t.Error(err)
		}
	}
}

func TestAConfigurationThatDoesNotComeToRunChangesNoKey(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 100)
	first := iss.keys().signing.id
	begin := time.Now()
	other := keyPolicy{master: iss.keyPolicy.master, algorithm: "EdDSA"}
	if _, err := openKeyring(t.Context(), iss.registry, other, time.Hour, at(begin, 0)); err != nil {
		t.Fatal(err)
	}
	for _, after := range []time.Duration{time.Minute, keyLead + time.Minute} {
		settleAt(t, iss, at(begin, after))
		if got := published(iss); !slices.Equal(got, []string{first}) {
			t.Errorf("after %v: published %v, want %s alone", after, got, first)
		}
	}
}

func TestANextKeyThatIsDamagedKeepsNothingFromWorking(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 100)
	first := iss.keys().signing.id
	next, _, err := iss.RotateKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	records, before, err := readKeyRecords(t.Context(), st)
	if err != nil {
		t.Fatal(err)
	}
	records[next.ID].Private.Box[0] ^= 1
	if err := records.commit(t.Context(), st, before); err != nil {
		t.Fatal(err)
	}
	unlock := iss.lockKeys()
	err = iss.settleKeys(t.Context(), at(time.Now(), keyLead+time.Minute))
	unlock()
	if err == nil || !strings.Contains(err.Error(), next.ID+" is damaged") {
		t.Errorf("when it is to sign: %v", err)
	}
	clientWithToken(t, iss)
	again := newTestIssuer(t, st, time.Hour, 100)
	if id := again.keys().signing.id; id != first {
		t.Errorf("after a restart %s signs, want %s", id, first)
	}
	if err := again.RevokeKey(t.Context(), next.ID); err != nil {
		t.Error(err)
	}
	settleAt(t, again, at(time.Now(), keyLead+time.Minute))
}

func TestAKeyOfTheConfigurationNeitherPublishesNorHastensTheNextOne(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 100)
	first := iss.keys().signing.id
	next, _, err := iss.RotateKey(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	given := makeKey(t, "ES256")
	other := &Issuer{store: st, registry: iss.registry, keyPolicy: keyPolicy{master: iss.keyPolicy.master, given: &given}}
	other.ring.Store(iss.keys())
	settleAt(t, other, at(time.Now(), keyLead/2))
	if got := published(other); !slices.Equal(got, []string{given.id, first}) {
		t.Errorf("published %v, want %s and %s", got, given.id, first)
	}
	listed, err := other.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range listed {
		if key.ID == next.ID && (key.Phase != KeyNext || !key.Changes.IsZero()) {
			t.Errorf("the key that waits is listed as %+v", key)
		}
	}
	for _, after := range []time.Duration{keyLead / 2, keyLead + time.Minute} { // that configuration is gone
		phases := settleAt(t, iss, at(time.Now(), after))
		if phases[first] != KeySigning || phases[next.ID] != KeyNext || !slices.Contains(published(iss), next.ID) {
			t.Errorf("after %v: phases %v, published %v", after, phases, published(iss))
		}
	}
	if phases := settleAt(t, iss, at(time.Now(), 3*keyLead)); phases[next.ID] != KeySigning {
		t.Errorf("when it was published for long enough: phases %v", phases)
	}
}

func TestAKeyOfTheConfigurationIsNotRotated(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	given := makeKey(t, "ES256")
	iss := issuerWith(t, st, &given, time.Now())
	if _, _, err := iss.RotateKey(t.Context()); !errors.Is(err, ErrGivenKey) {
		t.Errorf("rotated: %v", err)
	}
	if err := iss.RevokeKey(t.Context(), given.id); !errors.Is(err, ErrGivenKey) {
		t.Errorf("revoked while it signs: %v", err)
	}
	if err := newTestIssuer(t, st, time.Hour, 100).RevokeKey(t.Context(), given.id); err != nil {
		t.Errorf("revoked when another signs: %v", err)
	}
	if _, err := openKeyring(t.Context(), iss.registry, iss.keyPolicy, time.Hour, at(time.Now(), 0)); err == nil {
		t.Error("a configuration that brings a revoked key starts")
	}
}
