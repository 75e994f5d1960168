package handler

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// What package context promises of every context, whatever ends this one, and when.
func TestAContextThatIsDoneSaysWhy(t *testing.T) {
	why := errors.New("why")
	for name, end := range map[string]func(c *cutContext, cancelRequest context.CancelCauseFunc){
		"it is canceled":                          func(c *cutContext, _ context.CancelCauseFunc) { c.cancel() },
		"the handler returns":                     func(c *cutContext, _ context.CancelCauseFunc) { c.end() },
		"the handler returns after it has lasted": func(c *cutContext, _ context.CancelCauseFunc) { c.bind(); c.end() },
		"the request ends, and it lasts":          func(c *cutContext, cancel context.CancelCauseFunc) { c.bind(); cancel(why) },
		"the request has ended, and it is asked":  func(c *cutContext, cancel context.CancelCauseFunc) { cancel(why); _ = c.Err() },
		"the request has ended when it lasts":     func(c *cutContext, cancel context.CancelCauseFunc) { cancel(why); c.bind() },
	} {
		request, cancel := context.WithCancelCause(context.Background())
		c := &cutContext{Context: request}
		done := c.Done()
		child, cancelChild := context.WithCancel(c)
		if c.Err() != nil || child.Err() != nil {
			t.Fatalf("%s: it has ended before", name)
		}
		end(c, cancel)
		<-done
		<-child.Done()
		if c.Done() != done || !errors.Is(c.Err(), context.Canceled) || !errors.Is(child.Err(), context.Canceled) {
			t.Errorf("%s: Err is %v, and %v of a child", name, c.Err(), child.Err())
		}
		if request.Err() != nil && !errors.Is(context.Cause(child), why) {
			t.Errorf("%s: the cause is %v", name, context.Cause(child))
		}
		cancelChild()
		cancel(nil)
	}

	// Who still has it when the handler has returned.
	request, cancel := context.WithCancelCause(context.Background())
	c := &cutContext{Context: request}
	if c.end() {
		t.Error("something was made")
	}
	done := c.Done()
	if c.Err() != nil {
		t.Error("it has ended before the request")
	}
	cancel(nil)
	<-done
}

// A Go whose net/http has another name for the field makes this fail, so that the race
// which setContext avoids does not come back unseen.
func TestARequestIsGivenAnotherContextInItsPlace(t *testing.T) {
	if contextField == nil {
		t.Error("net/http.Request has no field ctx any more: setContext writes all of a request")
	}
	type key struct{}
	r := httptest.NewRequest(http.MethodPost, "/path", strings.NewReader("body"))
	before := *r
	setContext(context.WithValue(r.Context(), key{}, "value"), r)
	if r.Context().Value(key{}) != "value" || r.URL != before.URL || r.Body != before.Body || r.Method != before.Method {
		t.Errorf("the request is %+v", r)
	}
}
