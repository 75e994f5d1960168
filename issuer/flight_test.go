package issuer

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// methodOf has the keys of an issuer verify by another method.
func methodOf(iss *Issuer, method jwt.SigningMethod) {
	for id, key := range iss.keys().verify {
		key.method = method
		iss.keys().verify[id] = key
	}
}

func TestACheckThatNobodyWaitsForLeavesTheQueue(t *testing.T) {
	f := newForge(t, makeKey(t, "ES256"))
	f.iss.registry.signatureChecks = make(chan struct{}, 1)
	f.iss.registry.signatureChecks <- struct{}{} // another check takes its time
	counter := &countingMethod{SigningMethod: jwt.SigningMethodES256}
	methodOf(f.iss, counter)

	abandoned, shared := f.good(), f.good()
	gone, goAway := context.WithCancel(t.Context())
	left, answered := make(chan error), make(chan error)
	verify := func(ctx context.Context, token string, told chan<- error) {
		_, err := f.iss.Verify(ctx, token)
		told <- err
	}
	for _, token := range []string{abandoned, shared} { // these are the first, who check
		go verify(gone, token, left)
	}
	eventually(t, "both checks wait", func() bool { return waiting(f.iss, abandoned) == 1 && waiting(f.iss, shared) == 1 })
	go verify(context.Background(), shared, answered)
	go verify(gone, shared, left)
	eventually(t, "one of them for three", func() bool { return waiting(f.iss, shared) == 3 })
	goAway()
	for range 2 { // of the one token the first, of the other the third
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Errorf("who went away was told %v", err)
		}
	}
	eventually(t, "the one is given up, and the other is not", func() bool { return waiting(f.iss, abandoned) == 0 && waiting(f.iss, shared) == 1 })
	<-f.iss.registry.signatureChecks
	for _, told := range []chan error{answered, left} { // and who has checked it
		if err := <-told; err != nil {
			t.Errorf("who stayed was told %v", err)
		}
	}
	time.Sleep(50 * time.Millisecond) // longer than a check
	if n := counter.checks.Load(); n != 1 {
		t.Errorf("%d signatures were checked, want the one that somebody waits for", n)
	}
	if _, err := f.iss.Verify(t.Context(), abandoned); err != nil {
		t.Errorf("when it comes again: %v", err)
	}
}

func waiting(iss *Issuer, token string) int {
	iss.verifying.mu.Lock()
	defer iss.verifying.mu.Unlock()
	if one := iss.verifying.checks[token]; one != nil {
		return one.waiting
	}
	return 0
}

type panickingMethod struct{ jwt.SigningMethod }

func (panickingMethod) Verify(string, []byte, any) error { panic("no memory") }

func TestAPanicInACheckRefusesTheTokenAndNoOther(t *testing.T) {
	f := newForge(t, makeKey(t, "ES256"))
	f.iss.registry.signatureChecks = make(chan struct{}, 1)
	method := f.key.method
	methodOf(f.iss, panickingMethod{method})
	token := f.good()
	if _, err := f.iss.Verify(t.Context(), token); err == nil || isRefusal(err) {
		t.Errorf("with a panic: %v, want an error that is no refusal", err)
	}
	methodOf(f.iss, method)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := f.iss.Verify(ctx, token); err != nil { // its place is free again
		t.Errorf("after it: %v", err)
	}
}
