package handler

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/internal/strictjson"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

func init() {
	caddy.RegisterModule(AdminAPI{})
}

// AdminAPI is what the command `caddy client-credentials` talks to, on Caddy's
// admin endpoint:
//
//   - `POST /client-credentials` creates a credential, with any scopes and in
//     any account;
//   - `GET /client-credentials` lists the active ones of all accounts;
//   - `DELETE /client-credentials/{clientId}` revokes one;
//   - `POST /client-credentials/check-token` says whether a guard would accept a
//     token, and if not, why;
//   - `GET /client-credentials/keys` lists the signing keys, `POST` there publishes
//     the next one, and `DELETE /client-credentials/keys/{kid}` revokes one;
//   - `POST /client-credentials/master-key` replaces the master key;
//   - `GET /client-credentials/backup` answers with all that the store holds, as
//     the command `restore` takes it.
//
// Over TCP it answers loopback peers only.
type AdminAPI struct{}

// AdminPath is where the admin endpoint serves this API, and AdminCheckPath
// where it checks tokens.
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
		{Pattern: AdminPath, Handler: caddy.AdminHandlerFunc(a.serveCollection)},
		{Pattern: AdminPath + "/", Handler: caddy.AdminHandlerFunc(a.serveOne)},
		{Pattern: AdminCheckPath, Handler: caddy.AdminHandlerFunc(a.serveCheck)},
		{Pattern: AdminKeysPath, Handler: caddy.AdminHandlerFunc(a.serveKeys)},
		{Pattern: AdminKeysPath + "/", Handler: caddy.AdminHandlerFunc(a.serveKey)},
		{Pattern: AdminMasterKeyPath, Handler: caddy.AdminHandlerFunc(a.serveMasterKey)},
		{Pattern: AdminBackupPath, Handler: caddy.AdminHandlerFunc(a.serveBackup)},
		{Pattern: AdminImportPath, Handler: caddy.AdminHandlerFunc(a.serveImport)},
		{Pattern: AdminExportPath, Handler: caddy.AdminHandlerFunc(a.serveExport)},
	}
}

// AdminDraft is the body that creates a credential.
type AdminDraft struct {
	Name    *string  `json:"name,omitempty"`
	Expires *string  `json:"expires,omitempty"` // RFC 3339
	Account string   `json:"account,omitempty"`
	Scopes  []string `json:"scopes,omitempty"`
	// Audiences are the configured one where it is empty.
	Audiences []string `json:"audiences,omitempty"`
	// Grantable are what it may give to credentials that it creates; where it is
	// nil, its scopes, less those for management.
	Grantable []string `json:"grantable,omitzero"`
	// TokenLifetime is how long its tokens live; the configured time where it is
	// empty.
	TokenLifetime string `json:"tokenLifetime,omitempty"`
	// TokensPerHour and RequestsPerSecond are its limits; none where they are 0.
	TokensPerHour     int `json:"tokensPerHour,omitempty"`
	RequestsPerSecond int `json:"requestsPerSecond,omitempty"`
	// Claims is an object of what its tokens say beside their own claims.
	Claims json.RawMessage `json:"claims,omitempty"`
	// Keys is a JWK Set of public keys.
	Keys json.RawMessage `json:"jwks,omitempty"`
	// KeysURL is where it is published instead.
	KeysURL string `json:"jwksUri,omitempty"`
}

// AdminCredential is a credential as the list shows it.
type AdminCredential struct {
	credentialDocument
	Account   string   `json:"account"`
	Scopes    []string `json:"scopes"`
	Audiences []string `json:"audiences,omitempty"`
	// LastUsed is when it last authenticated; nil where it never did, or where that
	// was not asked for.
	LastUsed *timestamp `json:"lastUsed,omitempty"`
}

// AdminList returns the list of credentials in the form of the admin API, with the
// times at which they were last used; or without, where these are nil.
func AdminList(credentials []*issuer.Credential, lastUsed []time.Time) []AdminCredential {
	list := make([]AdminCredential, len(credentials))
	for i, c := range credentials {
		list[i] = AdminCredential{credentialDocument: document(c), Account: c.Account, Scopes: append([]string{}, c.Scopes...), Audiences: c.Audiences}
		if lastUsed != nil {
			list[i].LastUsed = timestampOrNull(lastUsed[i])
		}
	}
	return list
}

// ParseAdminDraft reads a body that creates a credential. It returns an
// *issuer.InputError where it is wrong.
func ParseAdminDraft(body []byte) (issuer.Draft, error) {
	draft, err := parseDraft(body)
	if err != nil {
		return draft, err
	}
	members, err := strictjson.Object(body)
	if err != nil {
		return draft, err
	}
	for name := range members {
		switch name {
		case "name", "expires", "account", "scopes", "audiences", "grantable", "tokenLifetime", "tokensPerHour", "requestsPerSecond", "claims", "jwks", "jwksUri":
		default:
			return draft, &issuer.InputError{Field: "the body", Problem: "has a member that is not known"}
		}
	}
	draft.Named = nil // the contract's object is what the commands print
	return draft, nil
}

func (a AdminAPI) serveCollection(w http.ResponseWriter, r *http.Request) error {
	iss, err := a.issuer(r)
	if err != nil {
		return err
	}
	switch r.Method {
	case http.MethodPost:
		body, err := readBody(w, r)
		if err != nil {
			return adminError(err)
		}
		draft, err := ParseAdminDraft(body)
		if err != nil {
			return adminError(err)
		}
		c, secret, err := iss.Create(r.Context(), draft)
		if err != nil {
			return adminError(err)
		}
		iss.Record(r.Context(), byCommand(issuer.Change{
			Action: issuer.CredentialCreated, ClientID: c.ClientID, Account: c.Account, Scope: strings.Join(c.Scopes, " "),
		}))
		writeBody(w, http.StatusCreated, "application/json", CreatedDocument(c, secret))
	case http.MethodGet:
		credentials, err := iss.List(r.Context(), "")
		var lastUsed []time.Time
		if err == nil {
			lastUsed, err = iss.LastUses(r.Context(), credentials)
		}
		if err != nil {
			return adminError(err)
		}
		adminLog().Info("credentials listed", zap.String("remote", r.RemoteAddr))
		writeBody(w, http.StatusOK, "application/json", marshal(AdminList(credentials, lastUsed)))
	default:
		return adminMethodNotAllowed(w, "GET, POST")
	}
	return nil
}

func (a AdminAPI) serveOne(w http.ResponseWriter, r *http.Request) error {
	iss, err := a.issuer(r)
	if err != nil {
		return err
	}
	if r.Method != http.MethodDelete {
		return adminMethodNotAllowed(w, http.MethodDelete)
	}
	clientID := strings.TrimPrefix(r.URL.Path, AdminPath+"/")
	if err := iss.Revoke(r.Context(), "", clientID); err != nil {
		return adminError(err)
	}
	iss.Record(r.Context(), byCommand(issuer.Change{Action: issuer.CredentialRevoked, ClientID: clientID}))
	w.WriteHeader(http.StatusNoContent)
	return nil
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
	expires := timestamp(t.Expires)
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
	verdict, err := NewTokenVerdict(iss.Check(r.Context(), check.Token, check.Audience, check.Scopes))
	if err != nil {
		return adminError(err)
	}
	adminLog().Info("token checked", zap.Bool("accepted", verdict.Accepted), zap.String("reason", verdict.Reason),
		zap.String("jti", verdict.ID), zap.String("remote", r.RemoteAddr))
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

func (AdminAPI) app(r *http.Request) (*issuer.App, error) {
	if err := requireLocal(r); err != nil {
		return nil, err
	}
	app, err := caddy.ActiveContext().AppIfConfigured("client_credentials")
	if err != nil {
		return nil, caddy.APIError{
			HTTPStatus: http.StatusNotFound,
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
	case errors.Is(err, issuer.ErrGivenKey), errors.Is(err, issuer.ErrDeclared):
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
func byCommand(c issuer.Change) issuer.Change {
	c.By, c.From = issuer.ByCommand, issuer.FromAdmin
	return c
}

func adminLog() *zap.Logger { return caddy.Log().Named("admin.api.client_credentials") }

// Interface guards
var _ caddy.AdminRouter = AdminAPI{}
