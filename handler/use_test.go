package handler_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

func TestTheLastUseIsShownWithTheSecretAndChangesNothingElse(t *testing.T) {
	s := run(t, testserver.Simple)
	manager := manage(t, s)
	c, _ := create(t, s, manager, `{}`)
	second := addSecret(t, s, manager, c.ClientID, `{}`)
	show := func() (tag, body, list string) {
		resp := get(t, s, manager, c.ClientID)
		tag, body = resp.Header.Get("ETag"), testserver.Body(t, resp)
		return tag, body, testserver.Body(t, s.Do(t, "GET", credentialsPath, "", testserver.Bearer(manager)...))
	}
	tag, body, list := show()
	c.Secret = &second.Secret
	s.Token(t, c.pair())
	lastUsed := func(when string) string {
		shown := secrets(t, s, manager, c.ClientID)
		if len(shown) != 2 || shown[0].LastUsed != nil || shown[1].LastUsed == nil || *shown[1].LastUsed < second.Created {
			t.Fatalf("%s: the secrets are %+v", when, shown)
		}
		return *shown[1].LastUsed
	}
	used := lastUsed("at once")
	if again, same, all := show(); again != tag || same != body || all != list {
		t.Errorf("a use has made %s %s of %s %s", again, same, tag, body)
	}
	if err := s.Load(testserver.Simple); err != nil {
		t.Fatal(err)
	}
	if again := lastUsed("after a reload"); again != used {
		t.Errorf("after a reload %s, before %s", again, used)
	}
	resp, err := http.Get(fmt.Sprintf("http://%s/metrics", s.Admin))
	if err != nil {
		t.Fatal(err)
	}
	wantMatch(t, "the metrics", testserver.Body(t, resp), `(?m)^caddy_client_credentials_last_used_flush_lag_seconds (0\.0*)?[1-9]`)
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	s.Run(t, testserver.Simple)
	if again := lastUsed("after a restart"); again != used {
		t.Errorf("after a restart %s, before %s", again, used)
	}

	if resp, err = http.Get(fmt.Sprintf("http://%s/client-credentials/credentials", s.Admin)); err != nil {
		t.Fatal(err)
	}
	type shown struct {
		ClientID string
		LastUsed *string
	}
	var all []shown
	text := testserver.Body(t, resp)
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		t.Fatal(err)
	}
	n := slices.IndexFunc(all, func(one shown) bool { return one.ClientID == c.ClientID })
	if n < 0 || all[n].LastUsed == nil || *all[n].LastUsed != used {
		t.Errorf("the admin endpoint shows %s", text)
	}
}
