package handler_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

func init() { caddy.RegisterModule(eventRecorder{}) }

// eventRecorder is an event handler that passes on what it is told.
type eventRecorder struct{}

// told has the events that were emitted, and waits where none is taken out.
var told = make(chan caddy.Event)

func (eventRecorder) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "events.handlers.recorder", New: func() caddy.Module { return new(eventRecorder) }}
}

func (*eventRecorder) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next()
	return nil
}

func (eventRecorder) Handle(ctx context.Context, e caddy.Event) error {
	told <- e
	return nil
}

// recording subscribes to events, by their names.
func recording(names ...string) string {
	var on strings.Builder
	for _, name := range names {
		fmt.Fprintf(&on, "on %s recorder\n", name)
	}
	return "events {\n" + on.String() + "}\n"
}

// wantEvent takes out the next event. It returns its data.
func wantEvent(t *testing.T, name string, data map[string]any) map[string]any {
	t.Helper()
	select {
	case e := <-told:
		if e.Name() != name {
			t.Fatalf("the event %s %v was told, want %s", e.Name(), e.Data, name)
		}
		if e.Origin().CaddyModule().ID != "client_credentials" {
			t.Errorf("%s is of %s", name, e.Origin().CaddyModule().ID)
		}
		got := maps.Clone(e.Data)
		for key, value := range data {
			if got[key] != value {
				t.Errorf("%s: %s is %v, want %v", name, key, got[key], value)
			}
		}
		return got
	case <-time.After(10 * time.Second):
		t.Fatalf("no event was told, want %s", name)
	}
	return nil
}

func TestChangesAreEventsAndNobodyWaitsForTheirHandlers(t *testing.T) {
	s := run(t, site("", recording("key_created", "credential_created", "credential_revoked", "credential_changed", "secret_rotated", "token_revoked", "brute_force_suspected"),
		"client_credentials {\nauth_failures 2 10\n}"))
	writer := s.CreateWith(t, issuer.ScopeWrite)
	token := s.Token(t, writer)
	management := testserver.Bearer(token)
	// All of this is answered before anybody takes the first event.
	made, _ := createGranted(t, s, token, "{}")
	wantRevoked(t, ask(t, s, revokePath, made, s.Token(t, made)))
	one := credentialsPath + "/" + made.ClientID
	wantStatus(t, s.Do(t, "PATCH", one, `{"enabled":false}`, append(management, "Content-Type", jsonType)...), http.StatusOK)
	wantStatus(t, s.Do(t, "POST", one+"/secrets", "", management...), http.StatusCreated)
	wantStatus(t, s.Do(t, "DELETE", one, "", management...), http.StatusNoContent)
	for range 5 {
		s.Do(t, "POST", tokenPath, byGrant, "Content-Type", formType, "Authorization", basic(writer.ClientID, "x"))
	}
	last, _ := createGranted(t, s, token, "{}")

	wantEvent(t, "key_created", map[string]any{"by": "server"})
	by := map[string]any{"client_id": made.ClientID, "account": "default", "by": writer.ClientID, "from": "127.0.0.1"}
	wantEvent(t, "credential_created", by)
	revoked := wantEvent(t, "token_revoked", map[string]any{"client_id": made.ClientID, "by": made.ClientID})
	if len(fmt.Sprint(revoked["jti"])) != 22 {
		t.Errorf("of the token it is told: %v", revoked)
	}
	if changed := wantEvent(t, "credential_changed", by); changed["members"] != "enabled" {
		t.Errorf("of the change it is told: %v", changed)
	}
	wantEvent(t, "secret_rotated", by)
	wantEvent(t, "credential_revoked", by)
	wantEvent(t, "brute_force_suspected", map[string]any{"client_id": writer.ClientID, "from": "127.0.0.1"})
	wantEvent(t, "credential_created", map[string]any{"client_id": last.ClientID}) // once, though there were more failures
	if log := s.Log(t); strings.Contains(log, made.Secret) || strings.Contains(log, token) {
		t.Error("a secret or a token was logged")
	}
}

func TestExpiriesAreToldOnceAcrossRestarts(t *testing.T) {
	s := newServer(t)
	config := site("", recording("credential_created", "credential_expiring", "credential_expired"), "client_credentials")
	writer := ""
	// create creates a credential that is told: what was told before is.
	create := func() {
		t.Helper()
		c, _ := createGranted(t, s, writer, "{}")
		wantEvent(t, "credential_created", map[string]any{"client_id": c.ClientID})
	}
	s.Run(t, config)
	writer = manage(t, s)
	create()
	soon := time.Now().UTC().Add(1500 * time.Millisecond)
	name, expiring := "backup job", map[int]testserver.Credential{}
	for _, days := range []int{30, 7, 1, 0} {
		expiring[days] = s.Create(t, issuer.Draft{Name: &name, Expires: soon.AddDate(0, 0, days)})
	}
	s.Revoke(t, s.Create(t, issuer.Draft{Expires: soon.AddDate(0, 0, 7)}))
	s.Create(t, issuer.Draft{Expires: soon.AddDate(0, 0, 5)}) // it never had 7 days
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(soon.Add(1100 * time.Millisecond)))
	s.Run(t, config)
	for _, days := range []int{30, 7, 1} {
		wantEvent(t, "credential_expiring", map[string]any{
			"client_id": expiring[days].ClientID, "account": "default", "name": name, "days": days,
			"expires": soon.AddDate(0, 0, days).Format(time.RFC3339),
		})
	}
	wantEvent(t, "credential_expired", map[string]any{"client_id": expiring[0].ClientID})
	create()
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	s.Run(t, config)
	create()
}

func TestTheLastEventsAreToldBeforeTheServerEnds(t *testing.T) {
	s := run(t, site("", recording("credential_created"), "client_credentials"))
	c, _ := createGranted(t, s, manage(t, s), "{}")
	ended := make(chan error)
	go func() { ended <- caddy.Stop() }()
	wantEvent(t, "credential_created", map[string]any{"client_id": c.ClientID})
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestAServerEndsThoughAHandlerOfItsEventsHangs(t *testing.T) {
	s := run(t, site("", recording("credential_created"), "client_credentials"))
	c, _ := createGranted(t, s, manage(t, s), "{}")
	ended := make(chan error)
	go func() { ended <- caddy.Stop() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("it waits for the handler")
	}
	wantEvent(t, "credential_created", map[string]any{"client_id": c.ClientID})
	if t.Failed() {
		<-ended
	}
}
