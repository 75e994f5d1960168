package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/clientcredentials/caddy-client-credentials/handler"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// offline works on the store itself.
type offline struct {
	app    *issuer.App
	issuer *issuer.Issuer
}

// openOffline opens the store of a configuration, of which nothing else is run.
func openOffline(config, adapter string) (manager, func(), error) {
	app, err := offlineApp(config, adapter, nil)
	if err != nil {
		return nil, nil, err
	}
	iss, err := app.Open()
	if err != nil {
		return nil, nil, err
	}
	return offline{app, iss}, func() { _ = app.Cleanup() }, nil
}

// configuredApp loads the app whose store, or master key, is meant.
func configuredApp(fl caddycmd.Flags) (*issuer.App, error) {
	config := configFile(fl, true)
	if config == "" {
		return nil, errors.New("name the configuration by --config: it says which store is meant")
	}
	return offlineApp(config, fl.String("adapter"), nil)
}

// offlineApp provisions the app of a configuration, and opens nothing. Another
// store takes the place of the configured one where it is given.
func offlineApp(config, adapter string, store json.RawMessage) (*issuer.App, error) {
	text, err := readConfig(config, adapter)
	if err != nil {
		return nil, err
	}
	var whole caddy.Config
	if err := json.Unmarshal(text, &whole); err != nil {
		return nil, fmt.Errorf("reading %s: %w", config, err)
	}
	const name = "client_credentials"
	raw := whole.AppsRaw[name]
	if raw == nil {
		return nil, fmt.Errorf("%s has no client_credentials app: add the global option client_credentials", config)
	}
	if store != nil {
		var members map[string]json.RawMessage
		if err := json.Unmarshal(raw, &members); err != nil {
			return nil, fmt.Errorf("reading %s: %w", config, err)
		}
		members["store"] = store
		if raw, err = json.Marshal(members); err != nil {
			return nil, err
		}
	}
	ctx, err := caddy.ProvisionContext(&caddy.Config{
		Admin:      &caddy.AdminConfig{Disabled: true},
		StorageRaw: whole.StorageRaw,
		AppsRaw:    caddy.ModuleMap{name: raw},
	})
	if err != nil {
		return nil, err
	}
	app, err := ctx.App(name)
	if err != nil {
		return nil, err
	}
	return app.(*issuer.App), nil
}

// readConfig returns a configuration as JSON. Caddy's own function for it has
// changed its signature between minor versions, and broken plugins that way.
func readConfig(file, adapter string) ([]byte, error) {
	if file == "" {
		return nil, errors.New("--offline needs --config, to know which store is meant")
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	base := strings.ToLower(filepath.Base(file))
	if adapter == "" && !strings.HasSuffix(base, ".json") &&
		(strings.HasPrefix(base, "caddyfile") || strings.HasSuffix(base, ".caddyfile")) {
		adapter = "caddyfile"
	}
	if adapter == "" {
		return text, nil
	}
	cfgAdapter := caddyconfig.GetAdapter(adapter)
	if cfgAdapter == nil {
		return nil, fmt.Errorf("unrecognized config adapter: %s", adapter)
	}
	adapted, _, err := cfgAdapter.Adapt(text, map[string]any{"filename": file})
	return adapted, err
}

func (o offline) create(draft handler.AdminDraft) ([]byte, error) {
	body, err := json.Marshal(draft)
	if err != nil {
		return nil, err
	}
	parsed, err := handler.ParseAdminDraft(body) // the same checks as online
	if err != nil {
		return nil, err
	}
	c, secret, err := o.issuer.Create(context.Background(), parsed)
	if err != nil {
		return nil, err
	}
	record(o.app, issuer.Change{
		Action: issuer.CredentialCreated, ClientID: c.ClientID, Account: c.Account, Scope: strings.Join(c.Scopes, " "),
	})
	return handler.CreatedDocument(c, secret), nil
}

func (o offline) list() ([]byte, error) {
	credentials, err := o.issuer.List(context.Background(), "")
	if err != nil {
		return nil, err
	}
	lastUsed, err := o.issuer.LastUses(context.Background(), credentials)
	if err != nil {
		return nil, err
	}
	return json.Marshal(handler.AdminList(credentials, lastUsed))
}

func (o offline) revoke(clientID string) error {
	if err := o.issuer.Revoke(context.Background(), "", clientID); err != nil {
		return err
	}
	record(o.app, issuer.Change{Action: issuer.CredentialRevoked, ClientID: clientID})
	return nil
}

// record writes a change into the audit log, which is standard error here: the
// files of a server's logs are that server's.
func record(app *issuer.App, c issuer.Change) {
	c.By, c.From = issuer.ByCommand, issuer.FromOffline
	app.Record(context.Background(), c)
}

func (o offline) check(check handler.TokenCheck) ([]byte, error) {
	verdict, err := handler.NewTokenVerdict(o.issuer.Check(context.Background(), check.Token, check.Audience, check.Scopes))
	if err != nil {
		return nil, err
	}
	return json.Marshal(verdict)
}
