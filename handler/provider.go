package handler

import (
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/caddyauth"
)

func init() {
	caddy.RegisterModule(BearerProvider{})
}

// BearerProvider checks bearer tokens as `bearer_auth` does, inside of Caddy's
// `authentication` handler: for those who also take other credentials, such as
// HTTP Basic, on the same route. That handler answers every refusal with 401;
// use `bearer_auth` where the exact status matters. The token is not forwarded
// to the upstream.
type BearerProvider struct {
	Rules

	guard *guard
}

// CaddyModule returns the Caddy module information.
func (BearerProvider) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.authentication.providers.bearer",
		New: func() caddy.Module { return new(BearerProvider) },
	}
}

// Provision sets up the guard.
func (b *BearerProvider) Provision(ctx caddy.Context) (err error) {
	b.guard, err = newGuard(ctx, b.Rules)
	return err
}

// Authenticate returns the client whose token the request carries. It returns
// an error only where it cannot tell.
func (b *BearerProvider) Authenticate(w http.ResponseWriter, r *http.Request) (caddyauth.User, bool, error) {
	request := clean(r)
	a, ref := b.guard.admit(request)
	if a == nil && ref == nil {
		ref = noToken()
	}
	if ref == nil {
		ref = a.count()
	}
	if ref != nil {
		request.takeBack()
		b.guard.challenge(w, r, ref)
		if ref.status == http.StatusTooManyRequests {
			return caddyauth.User{}, false, nil
		}
		return caddyauth.User{}, false, ref.err
	}
	b.guard.accept(request, a)
	setIdentity(r, a, false)
	return caddyauth.User{ID: a.Token.ClientID, Metadata: metadata(&a.Access)}, true, nil
}

// Interface guards
var (
	_ caddy.Provisioner       = (*BearerProvider)(nil)
	_ caddyauth.Authenticator = (*BearerProvider)(nil)
)
