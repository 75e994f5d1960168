package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	"github.com/clientcredentials/caddy-client-credentials/handler"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// offline answers from the store itself.
type offline struct{ app *issuer.App }

// openOffline has the app of a configuration, of which nothing else is run, open
// its store when it is asked.
func openOffline(config, adapter string) (manager, func(), error) {
	app, err := offlineApp(config, adapter, nil)
	if err != nil {
		return nil, nil, err
	}
	return offline{app}, func() { _ = app.Cleanup() }, nil
}

// configuredApp loads the app whose store, or master key, is meant.
func configuredApp(fl caddycmd.Flags) (*issuer.App, error) {
	config := configFile(fl, true)
	if config == "" {
		return nil, misused("name the configuration by --config: it says which store is meant")
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
		return nil, misused("--offline needs --config, to know which store is meant")
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

// request has the API answer as the admin endpoint would.
func (o offline) request(method, path string, body []byte) ([]byte, error) {
	r, err := http.NewRequestWithContext(context.Background(), method, path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	var failed error
	for _, route := range handler.OfflineAdmin(o.app).Routes() {
		mux.HandleFunc(route.Pattern, func(w http.ResponseWriter, r *http.Request) { failed = route.Handler.ServeHTTP(w, r) })
	}
	var answer answer
	mux.ServeHTTP(&answer, r)
	if refused, ok := errors.AsType[caddy.APIError](failed); ok {
		return nil, &failure{exitCode(refused.HTTPStatus), refused.Err}
	}
	return answer.body, failed
}

// record writes a change into the audit log, which is standard error here: the
// files of a server's logs are that server's.
func record(app *issuer.App, c issuer.Change) {
	c.By, c.From = issuer.ByCommand, issuer.FromOffline
	app.Record(context.Background(), c)
}

// answer keeps the body of an answer.
type answer struct {
	header http.Header
	body   []byte
}

func (a *answer) Header() http.Header {
	if a.header == nil {
		a.header = make(http.Header)
	}
	return a.header
}

func (a *answer) WriteHeader(int) {}

func (a *answer) Write(p []byte) (int, error) {
	a.body = append(a.body, p...)
	return len(p), nil
}
