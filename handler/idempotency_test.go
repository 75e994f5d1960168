package handler_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

func TestARequestThatIsSentTwiceCreatesOneCredential(t *testing.T) {
	s := run(t, site("", "", "client_credentials\nreverse_proxy {{upstream}}"))
	token := manage(t, s, issuer.ScopeWrite)
	create := func(token string, keys ...string) *http.Response {
		header := append(testserver.Bearer(token), "Content-Type", jsonType)
		for _, key := range keys {
			header = append(header, "Idempotency-Key", key)
		}
		return s.Do(t, "POST", credentialsPath, `{"name":"robot"}`, header...)
	}
	const key = "2026-11-27/robot"
	var first struct{ ClientID, Secret string }
	resp := create(token, key)
	wantStatus(t, resp, http.StatusCreated)
	if err := json.Unmarshal([]byte(testserver.Body(t, resp)), &first); err != nil || first.Secret == "" {
		t.Fatal(first, err)
	}
	resp = create(token, key)
	var problem struct{ ClientID, Detail string }
	wantStatus(t, resp, http.StatusConflict)
	body := testserver.Body(t, resp)
	if err := json.Unmarshal([]byte(body), &problem); err != nil || problem.ClientID != first.ClientID || !strings.Contains(problem.Detail, first.ClientID) {
		t.Errorf("the second try is answered %s, %v", body, err)
	}
	if strings.Contains(body, first.Secret) || strings.Contains(body, key) {
		t.Errorf("the answer repeats too much: %s", body)
	}
	wantStatus(t, create(token, key+"2"), http.StatusCreated)
	wantStatus(t, create(token), http.StatusCreated)
	wantStatus(t, create(token), http.StatusCreated)
	wantStatus(t, create(manage(t, s, issuer.ScopeWrite), key), http.StatusCreated) // of another client

	for _, bad := range [][]string{{""}, {"a b"}, {"ä"}, {strings.Repeat("k", 256)}, {"a", "b"}} {
		wantProblem(t, create(token, bad...), http.StatusBadRequest, "Idempotency-Key takes 1 to 255 visible ASCII characters, once")
	}
	wantStatus(t, create(token, strings.Repeat("k", 255)), http.StatusCreated)
}

func TestRequestsWithOneKeyAtOnceCreateOneCredential(t *testing.T) {
	s := run(t, site("", "", "client_credentials\nreverse_proxy {{upstream}}"))
	token := manage(t, s, issuer.ScopeWrite)
	var all sync.WaitGroup
	statuses := make(chan int, 20)
	for range cap(statuses) {
		all.Go(func() {
			resp := s.Do(t, "POST", credentialsPath, `{}`, append(testserver.Bearer(token), "Content-Type", jsonType, "Idempotency-Key", "k")...)
			statuses <- resp.StatusCode
		})
	}
	all.Wait()
	close(statuses)
	count := map[int]int{}
	for status := range statuses {
		count[status]++
	}
	if count[http.StatusCreated] != 1 || count[http.StatusConflict] != cap(statuses)-1 {
		t.Errorf("answered: %v", count)
	}
}
