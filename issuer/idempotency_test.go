package issuer

import (
	"errors"
	"testing"
	"time"
)

func TestARequestIsKnownForADayAndThenForgotten(t *testing.T) {
	st := openTestStore(t, t.TempDir())
	iss := newTestIssuer(t, st, time.Hour, 100)
	creator, _, _ := clientWithToken(t, iss)
	draft := Draft{CreatedBy: creator.ClientID, IdempotencyKey: "k"}
	c, _, err := iss.Create(t.Context(), draft)
	if err != nil {
		t.Fatal(err)
	}
	var repeated *RepeatedError
	if _, _, err := iss.Create(t.Context(), draft); !errors.As(err, &repeated) || repeated.ClientID != c.ClientID {
		t.Errorf("the second try: %v", err)
	}
	records := func() int { return len(keys(t, st, "idempotency")) }
	if err := iss.registry.sweep(t.Context(), time.Now().Add(idempotencyRetention-time.Minute)); err != nil || records() != 2 {
		t.Errorf("within a day: %d records, %v", records(), err)
	}
	if err := iss.registry.sweep(t.Context(), time.Now().Add(idempotencyRetention+time.Minute)); err != nil || records() != 0 {
		t.Errorf("after it: %d records, %v", records(), err)
	}
	if _, _, err := iss.Create(t.Context(), draft); err != nil {
		t.Errorf("a request of the next day: %v", err)
	}
}
