package handler

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

func init() {
	caddy.RegisterModule(AdminAPI{})
}

// AdminAPI is what the command `caddy client-credentials` talks to, on Caddy's
// admin endpoint:
//
//   - `/client-credentials/credentials` is the collection of the credentials of all
//     accounts, and what is below it as the API has that: `POST` creates one with
//     any scopes, `GET` lists those that have not ended, of one account with
//     `?account=`, and `DELETE` revokes many;
//   - `POST /client-credentials/check-token` says whether a guard would accept a
//     token, and if not, why;
//   - `GET /client-credentials/keys` lists the signing keys, `POST` there publishes
//     the next one, and `DELETE /client-credentials/keys/{kid}` revokes one;
//   - `POST /client-credentials/master-key` replaces the master key;
//   - `GET /client-credentials/backup` answers with all that the store holds, as
//     the command `restore` takes it;
//   - `POST /client-credentials/import` takes credentials of another server, and
//     `GET /client-credentials/export` answers with all, in that form.
//
// Over TCP it answers loopback peers only.
type AdminAPI struct {
	// offline is the app whose store a command has opened; nil for the app of the
	// configuration that runs.
	offline *issuer.App
}

// OfflineAdmin returns the API for a store that no server holds.
func OfflineAdmin(app *issuer.App) AdminAPI { return AdminAPI{app} }

// AdminPath is the path below which the admin endpoint serves this API, and
// AdminCheckPath that at which it checks tokens.
const (
	AdminPath      = "/client-credentials"
	AdminCheckPath = AdminPath + "/check-token"
)

// CaddyModule returns the Caddy module information.
func (AdminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "admin.api.client_credentials",
		New: func() caddy.Module { return new(AdminAPI) },
	}
}

// Routes returns the routes of the API.
func (a AdminAPI) Routes() []caddy.AdminRoute {
	return []caddy.AdminRoute{
		{Pattern: AdminCredentialsPath, Handler: caddy.AdminHandlerFunc(a.serveCredentials)},
		{Pattern: AdminCredentialsPath + "/{clientID}", Handler: caddy.AdminHandlerFunc(a.serveCredential)},
		{Pattern: AdminCredentialsPath + "/{clientID}/secrets", Handler: caddy.AdminHandlerFunc(a.serveSecrets)},
		{Pattern: AdminCredentialsPath + "/{clientID}/secrets/{secretID}", Handler: caddy.AdminHandlerFunc(a.serveSecret)},
		{Pattern: AdminCheckPath, Handler: caddy.AdminHandlerFunc(a.serveCheck)},
		{Pattern: AdminKeysPath, Handler: caddy.AdminHandlerFunc(a.serveKeys)},
		{Pattern: AdminKeysPath + "/{kid}", Handler: caddy.AdminHandlerFunc(a.serveKey)},
		{Pattern: AdminMasterKeyPath, Handler: caddy.AdminHandlerFunc(a.serveMasterKey)},
		{Pattern: AdminBackupPath, Handler: caddy.AdminHandlerFunc(a.serveBackup)},
		{Pattern: AdminImportPath, Handler: caddy.AdminHandlerFunc(a.serveImport)},
		{Pattern: AdminExportPath, Handler: caddy.AdminHandlerFunc(a.serveExport)},
	}
}

// TokenCheck is the body that asks about a token: the audience and the scopes
// are those of the guard that is meant.
type TokenCheck struct {
	Token    string   `json:"token"`
	Audience string   `json:"audience,omitempty"`
	Scopes   []string `json:"scopes,omitempty"`
}

// TokenVerdict is the answer. A reason is one that logs and metrics have.
type TokenVerdict struct {
	Accepted bool       `json:"accepted"`
	Reason   string     `json:"reason,omitempty"`
	ClientID string     `json:"client_id,omitempty"`
	ID       string     `json:"jti,omitempty"`
	Scope    string     `json:"scope,omitempty"`
	Audience []string   `json:"aud,omitempty"`
	Expires  *timestamp `json:"expires,omitempty"`
}

// NewTokenVerdict makes the answer of what Issuer.Check has returned. It returns
// an error where that could not tell.
func NewTokenVerdict(t *issuer.Token, err error) (TokenVerdict, error) {
	if refused, ok := errors.AsType[*issuer.Refusal](err); ok {
		return TokenVerdict{Reason: refused.Reason}, nil
	}
	if err != nil {
		return TokenVerdict{}, err
	}
	expires := timestamp(t.Expires())
	return TokenVerdict{
		Accepted: true, ClientID: t.ClientID, ID: t.ID, Scope: t.Scope, Audience: t.Audience(), Expires: &expires,
	}, nil
}

func (a AdminAPI) serveCheck(w http.ResponseWriter, r *http.Request) error {
	iss, err := a.issuer(r)
	if err != nil {
		return err
	}
	if r.Method != http.MethodPost {
		return adminMethodNotAllowed(w, http.MethodPost)
	}
	body, err := readBody(w, r)
	if err != nil {
		return adminError(err)
	}
	var check TokenCheck
	if err := json.Unmarshal(body, &check); err != nil || check.Token == "" {
		return adminError(&issuer.InputError{Field: "the body", Problem: "is no object with a token"})
	}
	if check.Audience != "" && !issuer.ValidAudience(check.Audience) {
		return adminError(&issuer.InputError{Field: "audience", Problem: "is no audience: visible ASCII, without a fragment"})
	}
	if slices.ContainsFunc(check.Scopes, func(scope string) bool { return !issuer.ValidScope(scope) }) {
		return adminError(&issuer.InputError{Field: "scopes", Problem: "holds what is no scope"})
	}
	verdict, err := NewTokenVerdict(iss.Check(r.Context(), check.Token, check.Audience, check.Scopes))
	if err != nil {
		return adminError(err)
	}
	a.log(r).Info("token checked", zap.Bool("accepted", verdict.Accepted), zap.String("reason", verdict.Reason), zap.String("jti", verdict.ID))
	writeBody(w, http.StatusOK, "application/json", marshal(verdict))
	return nil
}

// issuer returns the issuer of the configuration that runs now. It is asked for
// at each request: the routes are made before the apps of a configuration, and
// stay when it fails.
func (a AdminAPI) issuer(r *http.Request) (*issuer.Issuer, error) {
	app, err := a.app(r)
	if err != nil {
		return nil, err
	}
	iss, err := app.Open()
	if err != nil {
		return nil, adminError(err)
	}
	return iss, nil
}

func (a AdminAPI) app(r *http.Request) (*issuer.App, error) {
	if a.offline != nil {
		return a.offline, nil
	}
	if err := requireLocal(r); err != nil {
		return nil, err
	}
	app, err := caddy.ActiveContext().AppIfConfigured("client_credentials")
	if err != nil {
		return nil, caddy.APIError{
			HTTPStatus: http.StatusServiceUnavailable,
			Err:        errors.New("the running configuration has no client_credentials app: add the global option client_credentials"),
		}
	}
	return app.(*issuer.App), nil
}

// requireLocal refuses peers from other hosts: who reaches this API can give
// itself any right. A unix socket's peer has no IP address.
func requireLocal(r *http.Request) error {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err == nil && !net.ParseIP(host).IsLoopback() {
		adminLog().Warn("admin request refused", zap.String("reason", "peer is not local"), zap.String("remote", r.RemoteAddr))
		return caddy.APIError{
			HTTPStatus: http.StatusForbidden,
			Err:        errors.New("credentials are managed from this host only"),
		}
	}
	return nil
}

func adminError(err error) error {
	var input *issuer.InputError
	status := http.StatusServiceUnavailable
	switch {
	case errors.As(err, &input):
		status = http.StatusBadRequest
	case errors.Is(err, errTooLarge):
		status = http.StatusRequestEntityTooLarge
	case errors.Is(err, issuer.ErrNotFound), errors.Is(err, issuer.ErrNoKey):
		status = http.StatusNotFound
	case errors.Is(err, issuer.ErrGivenKey), errors.Is(err, issuer.ErrDeclared),
		errors.Is(err, issuer.ErrTooManySecrets), errors.Is(err, issuer.ErrLastSecret):
		status = http.StatusConflict
	case errors.Is(err, issuer.ErrFull):
		status = http.StatusInsufficientStorage
	}
	return caddy.APIError{HTTPStatus: status, Err: err}
}

func adminMethodNotAllowed(w http.ResponseWriter, allow string) error {
	w.Header().Set("Allow", allow)
	return caddy.APIError{
		HTTPStatus: http.StatusMethodNotAllowed,
		Err:        fmt.Errorf("this resource takes %s", allow),
	}
}

// byCommand says where a change comes from that was made here.
func (a AdminAPI) byCommand(c issuer.Change) issuer.Change {
	c.By, c.From = issuer.ByCommand, issuer.FromAdmin
	if a.offline != nil {
		c.From = issuer.FromOffline
	}
	return c
}

// log returns the logger of a request. Offline, the
// command itself says what was asked for.
func (a AdminAPI) log(r *http.Request) *zap.Logger {
	if a.offline != nil {
		return zap.NewNop()
	}
	return adminLog().With(zap.String("remote", r.RemoteAddr))
}

func adminLog() *zap.Logger { return caddy.Log().Named("admin.api.client_credentials") }

// Interface guards
var _ caddy.AdminRouter = AdminAPI{}
