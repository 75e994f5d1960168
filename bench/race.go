package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	raceName    = "revoked, then used"
	raceWorkers = 8
)

// racer revokes tokens and uses them again, while others are sent that push
// them out of the guard's memory.
type racer struct {
	caddy   *caddy
	manager string // a token that may create and revoke
	client  *http.Client
	result  *raceResult
}

// raceResult is what became of the tokens.
type raceResult struct {
	Tries    int `json:"tries"`
	Before   int `json:"accepted_before"`     // requests, from the issue of a token to the reply to its revocation
	During   int `json:"begun_before_denied"` // requests that began before the reply, and were refused
	After    int `json:"after"`               // requests that began after the reply
	Accepted int `json:"accepted_after"`      // those of them that were let through
}

// race runs as many tries as were asked for.
func (b *bench) race(ctx context.Context, found *outcome) error {
	if !b.wants(raceName) {
		return nil
	}
	spec := storeSpec{algorithm: "ES256", credentials: 100, tokens: b.tries / 2}
	c := b.onCopy(b.caddy("race", spec, map[string]string{
		"token": "client_credentials", "guard": "bearer_auth\n" + endings("")[responded],
	}), memoryDir())
	c.core = "" // more cores, more races
	if err := c.ensure(ctx); err != nil {
		return err
	}
	defer c.stop()
	manager, err := firstLine(c.file("manager_token"))
	if err != nil {
		return err
	}
	end, err := b.flood(ctx, &testCase{
		server: c.server, address: c.sites["guard"].address, status: http.StatusOK, connections: concurrency,
		request: request{method: http.MethodGet, path: "/", lines: c.file("tokens"), as: "token"},
	})
	if err != nil {
		return err
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 4 * raceWorkers}
	r := &racer{caddy: c, manager: manager, client: &http.Client{Transport: transport}, result: &raceResult{}}
	err = errors.Join(r.run(ctx, b.tries), end())
	found.Race = r.result
	log.Printf("%s: %d of %d requests were accepted", raceName, r.result.Accepted, r.result.After)
	return err
}

func (r *racer) run(ctx context.Context, tries int) error {
	var (
		group sync.WaitGroup
		next  atomic.Int64
		sum   sync.Mutex
		errs  []error
	)
	for range raceWorkers {
		group.Go(func() {
			for i := next.Add(1); i <= int64(tries); i = next.Add(1) {
				one, err := r.try(ctx, i)
				sum.Lock()
				r.result.add(one)
				if err != nil {
					errs = append(errs, err)
				}
				failed := len(errs) > 0
				sum.Unlock()
				if failed {
					return
				}
			}
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

func (o *raceResult) add(one raceResult) {
	o.Tries++
	o.Before += one.Before
	o.During += one.During
	o.After += one.After
	o.Accepted += one.Accepted
}

// try makes a credential and a token, revokes one of them in turn, and uses the
// token from before the revocation until after the reply.
func (r *racer) try(ctx context.Context, i int64) (raceResult, error) {
	var o raceResult
	id, secret, err := r.create(ctx)
	if err != nil {
		return o, err
	}
	token, err := r.mint(ctx, id, secret)
	if err != nil {
		return o, err
	}
	var acknowledged atomic.Bool
	user := make(chan error, 1)
	begun := make(chan struct{})
	go func() { user <- r.use(ctx, token, &acknowledged, begun, &o) }()
	<-begun
	if i%2 == 0 {
		err = r.revokeToken(ctx, id, secret, token)
	} else {
		err = r.revokeCredential(ctx, id)
	}
	acknowledged.Store(true)
	if err != nil {
		return o, errors.Join(err, <-user)
	}
	status, err := r.get(ctx, token) // on another connection than the user's
	if err != nil {
		return o, errors.Join(err, <-user)
	}
	err = <-user
	return o, errors.Join(err, o.count(status, true))
}

// use sends the token again and again, until a request that has begun after the
// reply was answered.
func (r *racer) use(ctx context.Context, token string, acknowledged *atomic.Bool, begun chan<- struct{}, o *raceResult) error {
	for first := true; ; first = false {
		after := acknowledged.Load()
		status, err := r.get(ctx, token)
		if first {
			close(begun)
		}
		if err == nil {
			err = o.count(status, after)
		}
		if err != nil || after {
			return err
		}
	}
}

func (o *raceResult) count(status int, after bool) error {
	switch {
	case status != http.StatusOK && status != http.StatusUnauthorized:
		return fmt.Errorf("%s: a guard answered with status %d", raceName, status)
	case after:
		o.After++
		if status == http.StatusOK {
			o.Accepted++
		}
	case status == http.StatusOK:
		o.Before++
	default:
		o.During++
	}
	return nil
}

func (r *racer) get(ctx context.Context, token string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.caddy.sites["guard"].address+"/", http.NoBody)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	status, _, err := send(r.client, req)
	return status, err
}

func (r *racer) create(ctx context.Context) (id, secret string, err error) {
	var created struct{ ClientID, Secret string }
	err = r.call(ctx, http.MethodPost, managePath, "application/json", `{"name":"race"}`, r.manager, http.StatusCreated, &created)
	return created.ClientID, created.Secret, err
}

func (r *racer) mint(ctx context.Context, id, secret string) (string, error) {
	var issued struct {
		Token string `json:"access_token"`
	}
	form := url.Values{"grant_type": {"client_credentials"}, "client_id": {id}, "client_secret": {secret}}
	err := r.call(ctx, http.MethodPost, tokenPath, formType, form.Encode(), "", http.StatusOK, &issued)
	return issued.Token, err
}

func (r *racer) revokeToken(ctx context.Context, id, secret, token string) error {
	form := url.Values{"client_id": {id}, "client_secret": {secret}, "token": {token}}
	return r.call(ctx, http.MethodPost, "/api/v0/oauth/revoke", formType, form.Encode(), "", http.StatusOK, nil)
}

func (r *racer) revokeCredential(ctx context.Context, id string) error {
	return r.call(ctx, http.MethodDelete, managePath+"/"+id, "", "", r.manager, http.StatusNoContent, nil)
}

// call sends a request to the site with the endpoints, and reads the JSON that
// answers it.
func (r *racer) call(ctx context.Context, method, path, contentType, body, token string, expected int, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, "http://"+r.caddy.sites["token"].address+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", contentType)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	status, text, err := send(r.client, req)
	if err != nil {
		return err
	}
	if status != expected {
		return fmt.Errorf("%s %s: status %d: %s", method, path, status, text)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}
