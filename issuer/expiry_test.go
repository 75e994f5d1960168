package issuer

import (
	"maps"
	"testing"
	"time"
)

func TestAnExpiryIsDueWhenItsDaysBegin(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 100)
	day := 24 * time.Hour
	now := time.Now()
	c, _, err := iss.Create(t.Context(), Draft{Expires: now.Add(40 * day)})
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name      string
		told, now time.Duration // since the credential was created
		days      int           // -1 for none
	}{
		{"too early", 0, 9 * day, -1},
		{"30 days", 0, 11 * day, 30},
		{"told before", 11 * day, 12 * day, -1},
		{"7 days", 12 * day, 34 * day, 7},
		{"1 day", 34 * day, 39*day + time.Minute, 1},
		{"expired", 39*day + time.Minute, 41 * day, 0},
		{"expired, and told", 41 * day, 42 * day, -1},
		{"7 days, though 30 were never told", 0, 34 * day, 7},
		{"expired while nothing ran", 0, 400 * day, 0},
		{"a clock that was set back", 41 * day, 10*day + 23*time.Hour, -1},
	} {
		told := make(expiriesTold)
		told.correct(now.Add(test.told))
		due, err := iss.registry.dueExpiries(t.Context(), told, now.Add(test.now))
		if err != nil {
			t.Fatal(err)
		}
		if test.days < 0 && len(due) == 0 {
			continue
		}
		if len(due) != 1 || due[0] != (dueExpiry{test.days, endedKey(c.Expires, c.ClientID)}) {
			t.Errorf("%s: %v is due, want %d days", test.name, due, test.days)
		}
	}
}

// A clock that is wrong for a while must not keep expiries from being told later.
func TestExpiriesThatAClockAheadHasToldAreToldAgain(t *testing.T) {
	now := time.Now()
	told, right := make(expiriesTold), make(expiriesTold)
	told.correct(now.AddDate(50, 0, 0))
	told.correct(now)
	right.correct(now)
	if !maps.Equal(told, right) {
		t.Errorf("what was told is %v, want %v", told, right)
	}
	told.correct(now.Add(-time.Minute))
	if !maps.Equal(told, right) {
		t.Error("a clock that is a minute behind has expiries told twice")
	}
}

func TestALookForExpiriesReadsThoseThatAreDueAlone(t *testing.T) {
	st := &countingStore{Store: openTestStore(t, t.TempDir())}
	iss := newTestIssuer(t, st, time.Hour, 100)
	const many, due = 500, 3
	day := 24 * time.Hour
	now := time.Now().Truncate(day).Add(5 * day)
	createMany(t, iss, many, func(n int) Draft {
		if n < due {
			return Draft{Expires: now.Add(time.Second)}
		}
		return Draft{Expires: now.Add(day/2 + time.Second)} // on the same day
	})
	told := make(expiriesTold)
	told.correct(now)
	st.reads.Store(0)
	found, err := iss.registry.dueExpiries(t.Context(), told, now.Add(time.Minute))
	if err != nil || len(found) != due {
		t.Fatalf("%d are due, %v, want %d", len(found), err, due)
	}
	if n := st.reads.Load(); n > due+10 {
		t.Errorf("%d reads, to find %d of %d", n, due, many)
	}
}
