package handler

import (
	"net/http"
	"net/url"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

func init() {
	caddy.RegisterModule(ProtectedResource{})
}

// ProtectedResource serves the metadata of the resources that the guards of
// this server protect (RFC 9728), at
// `/.well-known/oauth-protected-resource`, without a token. A resource has such
// a document if its audience is the URL at which the clients reach it; the
// guard's refusals then name it in `WWW-Authenticate`.
//
// The handlers `bearer_auth` and `client_credentials` serve the same documents;
// this one is for routes whose guard is the `bearer` provider.
type ProtectedResource struct {
	app *issuer.App
}

// CaddyModule returns the Caddy module information.
func (ProtectedResource) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.oauth_protected_resource",
		New: func() caddy.Module { return new(ProtectedResource) },
	}
}

// Provision finds the app.
func (p *ProtectedResource) Provision(ctx caddy.Context) (err error) {
	p.app, err = configuredApp(ctx)
	return err
}

func (p *ProtectedResource) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if serveResource(w, r, p.app) {
		return nil
	}
	return next.ServeHTTP(w, r)
}

// resourceMetadata is the document of RFC 9728 section 2.
type resourceMetadata struct {
	Resource string   `json:"resource"`
	Servers  []string `json:"authorization_servers"`
	Scopes   []string `json:"scopes_supported,omitempty"`
	Methods  []string `json:"bearer_methods_supported"`
}

const resourceMetadataPath = "/.well-known/oauth-protected-resource"

// serveResource serves the metadata of the resource that the request asks for,
// and reports whether there is such a resource.
func serveResource(w http.ResponseWriter, r *http.Request, app *issuer.App) bool {
	if !strings.HasPrefix(r.URL.Path, resourceMetadataPath) {
		return false
	}
	for _, resource := range app.Resources() {
		if u := resourceMetadataURL(resource.Audience); u != nil && u.Path == r.URL.Path && isHost(r, u) {
			writePublic(w, r, resourceMetadata{
				Resource: resource.Audience,
				Servers:  []string{app.Policy().Issuer},
				Scopes:   resource.Scopes,
				Methods:  []string{"header"},
			})
			return true
		}
	}
	return false
}

// resourceMetadataURL returns where the metadata of a resource is: the
// well-known path between its host and its own path (RFC 9728 section 3.1). It
// returns nil where the audience is not a URL that has such a place.
func resourceMetadataURL(audience string) *url.URL {
	u, err := url.Parse(audience)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil ||
		strings.ContainsAny(audience, "?#") || u.String() != audience {
		return nil
	}
	path := u.Path
	if path == "/" {
		path = ""
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host, Path: resourceMetadataPath + path}
}

// isHost reports whether the request was sent to the host of the URL.
func isHost(r *http.Request, u *url.URL) bool {
	defaultPort := ":443"
	if u.Scheme == "http" {
		defaultPort = ":80"
	}
	return strings.EqualFold(strings.TrimSuffix(r.Host, defaultPort), strings.TrimSuffix(u.Host, defaultPort))
}

// Interface guards
var (
	_ caddy.Provisioner           = (*ProtectedResource)(nil)
	_ caddyhttp.MiddlewareHandler = (*ProtectedResource)(nil)
)
