// Command quickstart runs the real server with the embedded store on
// localhost:8080, with a sample API behind the guard and two credentials, and
// prints the commands to try it with. It keeps nothing: its store is a
// temporary directory.
package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/clientcredentials/caddy-client-credentials"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

//go:embed Caddyfile
var caddyfile []byte

func main() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	dir, err := os.MkdirTemp("", "quickstart")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := start(dir); err != nil {
		return err
	}
	defer func() { _ = caddy.Stop() }()

	app, err := caddy.ActiveContext().App("client_credentials")
	if err != nil {
		return err
	}
	iss, err := app.(*issuer.App).Open()
	if err != nil {
		return err
	}
	if err := explain(interrupted, iss); err != nil {
		return err
	}
	<-interrupted.Done()
	return nil
}

// start runs the Caddyfile as Caddy would, but for its admin endpoint, which
// another Caddy on this machine may be using.
func start(dir string) error {
	if err := os.Setenv("QUICKSTART_DATA", dir); err != nil {
		return err
	}
	adapted, _, err := caddyconfig.GetAdapter("caddyfile").Adapt(caddyfile, map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return err
	}
	var cfg caddy.Config
	if err := json.Unmarshal(adapted, &cfg); err != nil {
		return err
	}
	keep := false
	cfg.Admin = &caddy.AdminConfig{Disabled: true, Config: &caddy.ConfigSettings{Persist: &keep}}
	return caddy.Run(&cfg)
}

func explain(ctx context.Context, iss *issuer.Issuer) error {
	name := "quickstart"
	manager, managerSecret, err := iss.Create(ctx, issuer.Draft{Name: &name, Scopes: []string{issuer.ScopeWrite}})
	if err != nil {
		return err
	}
	client, clientSecret, err := iss.Create(ctx, issuer.Draft{Name: &name, Scopes: []string{"hello:read"}, CreatedBy: manager.ClientID})
	if err != nil {
		return err
	}
	_, err = fmt.Printf(walk, client.ClientID, clientSecret, manager.ClientID, managerSecret, client.ClientID)
	return err
}

const walk = `The server runs on http://localhost:8080. In another terminal, paste:

# 1. A client turns its credential into a token
TOKEN=$(curl -s -u '%s:%s' -d grant_type=client_credentials http://localhost:8080/api/v0/oauth/token | sed 's/.*"access_token":"\([^"]*\)".*/\1/'); echo "$TOKEN"

# 2. and calls the API with it: 200
curl -i -H "Authorization: Bearer $TOKEN" http://localhost:8080/hello

# 3. Whoever manages the credentials revokes it: 204
ADMIN=$(curl -s -u '%s:%s' -d grant_type=client_credentials http://localhost:8080/api/v0/oauth/token | sed 's/.*"access_token":"\([^"]*\)".*/\1/')
curl -i -X DELETE -H "Authorization: Bearer $ADMIN" http://localhost:8080/api/v0/client-credentials/%s

# 4. and the same token, though unexpired, is refused: 401
curl -i -H "Authorization: Bearer $TOKEN" http://localhost:8080/hello

Ctrl-C ends the server; it keeps nothing.
`
