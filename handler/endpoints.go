// Package handler is the HTTP side: the endpoints, one file each, and the guard
// in front of what the site serves.
package handler

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

func init() {
	caddy.RegisterModule(ClientCredentials{})
}

// ClientCredentials serves the endpoints of the `client_credentials` app:
//
//   - `POST`, `GET`, `DELETE <base_path>/client-credentials` and
//     `GET`, `PATCH`, `DELETE <base_path>/client-credentials/{clientId}` manage the
//     credentials of the caller's account, for tokens with the scope
//     `client-credentials:write` (or, to see them, `client-credentials:read`), and
//     those of all accounts for `client-credentials:admin`;
//   - `GET`, `POST <base_path>/client-credentials/{clientId}/secrets` and
//     `DELETE <base_path>/client-credentials/{clientId}/secrets/{secretId}` manage
//     the secrets of one, in the same way;
//   - `POST <base_path>/oauth/token` issues tokens (RFC 6749 section 4.4);
//   - `POST <base_path>/oauth/introspect` tells whether a token counts (RFC
//     7662), and `POST <base_path>/oauth/revoke` revokes one (RFC 7009): for the
//     client that it was issued to, and for callers with the scopes
//     `tokens:introspect` and `tokens:revoke`;
//   - `GET <base_path>/oauth/jwks` shows the public keys that verify them;
//   - `GET <base_path>/health` and `GET <base_path>/health/ready` tell load
//     balancers whether this server can say what a token is worth, and
//     `GET <base_path>/health/live` that it answers;
//   - `GET <base_path>/openapi.json` describes all of these to programs, as an
//     OpenAPI document;
//   - `GET /.well-known/oauth-authorization-server`, with the issuer's path
//     behind it, describes the server (RFC 8414);
//   - `GET /.well-known/oauth-protected-resource`, with the path of an audience
//     behind it, describes what the guards of this host protect (RFC 9728).
//
// Every other request goes on to the next handler, unguarded: put
// `bearer_auth` after it, as the directive `client_credentials` does.
type ClientCredentials struct {
	// The path under which the endpoints are served. Default: `/api/v0`
	BasePath string `json:"base_path,omitempty"`

	// Adds to the metadata what clients of the Model Context Protocol insist on:
	// `authorization_endpoint`, `response_types_supported` and
	// `code_challenge_methods_supported`. The endpoint itself refuses all that
	// is asked of it. Default: `false`
	MCPCompat bool `json:"mcp_compat,omitempty"`

	// Accepts client assertions that name an endpoint of this server as their
	// audience, or several audiences, as older clients send them (RFC 7523).
	// Default: `false`; the issuer must be the one audience, given as a string
	LenientAssertionAudience bool `json:"lenient_assertion_audience,omitempty"`

	// How often clients may fail to authenticate. Default: 50 times at once for one
	// client, and 500 for one address
	AuthFailures *FailureLimit `json:"auth_failures,omitempty"`

	app      *issuer.App
	guard    *guard
	logger   *zap.Logger
	openAPI  []byte
	failures *failureCounter // held where it is not nil

	warnPlaintext *sync.Once
}

// DefaultBasePath is where the endpoints are where nothing is configured.
const DefaultBasePath = "/api/v0"

// CaddyModule returns the Caddy module information.
func (ClientCredentials) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.client_credentials",
		New: func() caddy.Module { return new(ClientCredentials) },
	}
}

// Provision sets up the endpoints.
func (c *ClientCredentials) Provision(ctx caddy.Context) (err error) {
	c.logger = ctx.Logger()
	c.warnPlaintext = new(sync.Once)
	if c.BasePath == "" {
		c.BasePath = DefaultBasePath
	}
	if err := ValidateBasePath(c.BasePath); err != nil {
		return err
	}
	c.BasePath = strings.TrimSuffix(c.BasePath, "/")
	if c.AuthFailures == nil {
		c.AuthFailures = new(FailureLimit)
	}
	if err := c.AuthFailures.provision(); err != nil {
		return err
	}
	if c.app, err = configuredApp(ctx); err != nil {
		return err
	}
	if c.guard, err = newGuard(ctx, Rules{}); err != nil {
		return err
	}
	if c.openAPI, err = c.describe(); err != nil {
		return err
	}
	c.failures, err = acquireFailures()
	return err
}

// Cleanup gives up what Provision has acquired.
func (c *ClientCredentials) Cleanup() error {
	if c.failures == nil {
		return nil
	}
	_, err := failures.Delete(failuresKey)
	return err
}

// ValidateBasePath checks the path of the endpoints.
func ValidateBasePath(path string) error {
	if !strings.HasPrefix(path, "/") || strings.ContainsAny(path, "?#*{}%\\ ") || strings.Contains(path, "//") {
		return fmt.Errorf("base_path %q is not a plain absolute path, such as %s", path, DefaultBasePath)
	}
	return nil
}

func (c *ClientCredentials) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if !c.serve(w, r) && !c.serveWellKnown(w, r) {
		return next.ServeHTTP(w, r)
	}
	return nil
}

// The paths of the endpoints, below the base path.
const (
	tokenPath       = "/oauth/token"
	introspectPath  = "/oauth/introspect"
	revokePath      = "/oauth/revoke"
	authorizePath   = "/oauth/authorize"
	openAPIPath     = "/openapi.json"
	credentialsPath = "/client-credentials"
)

// serve answers what is asked of an endpoint, and reports whether it was.
func (c *ClientCredentials) serve(w http.ResponseWriter, r *http.Request) bool {
	path, ok := strings.CutPrefix(r.URL.Path, c.BasePath)
	if !ok {
		return false
	}
	below, one := strings.CutPrefix(path, credentialsPath+"/")
	switch {
	case path == tokenPath:
		c.warnIfPlaintext(r)
		c.serveToken(w, r)
	case path == credentialsPath:
		c.warnIfPlaintext(r)
		c.serveCredentials(w, r)
	case one: // whatever it is: no such path is the upstream's
		c.warnIfPlaintext(r)
		c.serveBelowCredentials(w, r, below)
	case path == introspectPath:
		c.warnIfPlaintext(r)
		c.serveIntrospect(w, r)
	case path == revokePath:
		c.warnIfPlaintext(r)
		c.serveRevoke(w, r)
	case path == keySetPath:
		c.serveKeySet(w, r)
	case path == healthPath, path == readyPath:
		c.serveHealth(w, r)
	case path == livePath:
		serveLive(w, r)
	case path == openAPIPath:
		writePublicText(w, r, c.openAPI)
	case path == authorizePath && c.MCPCompat:
		c.serveAuthorize(w, r)
	default:
		return false
	}
	return true
}

// serveWellKnown answers what is asked of a well-known path, RFC 8615, and
// reports whether it was. Others may be the upstream's.
func (c *ClientCredentials) serveWellKnown(w http.ResponseWriter, r *http.Request) bool {
	if c.isMetadataPath(r.URL.Path) {
		writePublic(w, r, c.metadata())
		return true
	}
	return serveResource(w, r, c.app)
}

// warnIfPlaintext tells the operator, once for each configuration, that secrets
// cross a network in the clear. RFC 6749 section 3.2 requires TLS.
func (c *ClientCredentials) warnIfPlaintext(r *http.Request) {
	if r.TLS != nil {
		return
	}
	if trusted, _ := caddyhttp.GetVar(r.Context(), caddyhttp.TrustedProxyVarKey).(bool); trusted &&
		strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https") {
		return
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil || net.ParseIP(host).IsLoopback() { // no port: a unix socket
		return
	}
	c.warnPlaintext.Do(func() {
		c.logger.Warn("credential endpoints are reached without TLS: secrets and tokens cross the network in the clear",
			zap.String("remote_ip", host), zap.String("host", r.Host))
	})
}

// manager returns the caller, if its token carries one of the scopes, or
// issuer.ScopeAdmin, else it answers. The endpoints answer their refusals
// themselves: the contract fixes their form.
func (c *ClientCredentials) manager(w http.ResponseWriter, r *http.Request, scopes ...string) (issuer.Caller, bool) {
	request := clean(r)
	a, ref := c.guard.admit(request)
	switch {
	case ref != nil:
	case a == nil:
		ref = noToken()
	case !a.Token.HasScope(issuer.ScopeAdmin) && !slices.ContainsFunc(scopes, a.Token.HasScope):
		ref = insufficientScope(a.Token.ClientID, scopes[0])
	default:
		c.guard.accept(request, a)
		caller, err := a.Caller(r.Context())
		if err == nil {
			return caller, true
		}
		ref = cannotTell(err)
	}
	c.guard.refuse(w, r, ref)
	return issuer.Caller{}, false
}

// reaches reports whether the caller manages the account, else it answers.
func (c *ClientCredentials) reaches(w http.ResponseWriter, r *http.Request, by issuer.Caller, account string) bool {
	if reach := by.Reach(); reach != "" && reach != account {
		c.guard.refuse(w, r, insufficientScope(by.Credential.ClientID, issuer.ScopeAdmin))
		return false
	}
	return true
}

// refuse answers a refusal as a problem document.
func (g *guard) refuse(w http.ResponseWriter, r *http.Request, ref *refusal) {
	g.challenge(w, r, ref)
	detail := ref.description
	switch ref.status {
	case http.StatusServiceUnavailable:
		detail = "the server cannot tell now whether the token is valid"
	case http.StatusUnauthorized:
		if detail == "" {
			detail = "a bearer token is needed"
		}
	}
	writeProblem(w, ref.status, detail)
}

// fail answers where the server could not do what it was rightly asked for.
func (c *ClientCredentials) fail(w http.ResponseWriter, doing string, err error) {
	logFailure(c.logger, "request failed", err, zap.String("doing", doing))
	w.Header().Set("Retry-After", retryAfter)
	writeProblem(w, http.StatusServiceUnavailable, "the server can't do this now")
}

// logFailure logs that a request could not be answered as it should be. That a node
// is cut off from its store is told once, by the store, and not with each request.
func logFailure(logger *zap.Logger, message string, err error, fields ...zap.Field) {
	level := zap.ErrorLevel
	if errors.Is(err, issuer.ErrStale) {
		level = zap.DebugLevel
	}
	if entry := logger.Check(level, message); entry != nil {
		entry.Write(append(fields, zap.Error(err))...)
	}
}

// badInput answers where the request's own text is wrong, and reports whether
// err says so.
func badInput(w http.ResponseWriter, err error) bool {
	var input *issuer.InputError
	switch {
	case errors.Is(err, errTooLarge):
		writeProblem(w, http.StatusRequestEntityTooLarge, err.Error())
	case errors.As(err, &input):
		writeProblem(w, http.StatusBadRequest, input.Error())
	default:
		return false
	}
	return true
}

// badRequest answers where the request is wrong, or asks for more than its caller
// may, and reports whether err says so.
func (c *ClientCredentials) badRequest(w http.ResponseWriter, r *http.Request, err error) bool {
	_, beyond := errors.AsType[*issuer.GrantError](err)
	switch {
	case beyond:
		writeProblem(w, http.StatusForbidden, err.Error())
	case errors.Is(err, issuer.ErrCallerEnded):
		c.guard.refuse(w, r, invalidToken("revoked"))
	default:
		return badInput(w, err)
	}
	return true
}

func methodNotAllowed(w http.ResponseWriter, allow string) {
	w.Header().Set("Allow", allow)
	writeProblem(w, http.StatusMethodNotAllowed, "this resource takes "+allow)
}

// Interface guards
var (
	_ caddy.Provisioner           = (*ClientCredentials)(nil)
	_ caddy.CleanerUpper          = (*ClientCredentials)(nil)
	_ caddyhttp.MiddlewareHandler = (*ClientCredentials)(nil)
)
