package handler

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	caddy.RegisterModule(BearerAuth{})
}

// BearerAuth lets a request pass that carries a valid access token of the
// `client_credentials` app (RFC 6750), and refuses every other. A token stops
// being valid when it expires, and at once when its credential is revoked.
//
// It sets these placeholders:
//
// Placeholder | Description
// ------------|------------
// `{http.auth.user.id}` | The client id
// `{http.auth.user.scope}` | The scopes of the token, separated by spaces
// `{http.auth.user.account}` | The account of the credential
// `{http.auth.user.name}` | The name of the credential, empty if it has none
// `{http.auth.user.jti}` | The id of the token
// `{http.auth.bearer.error}` | Why the request was refused, for `handle_errors`
//
// The upstream sees the first three as the header fields `X-Client-Id`,
// `X-Client-Scope` and `X-Client-Account`; what the client itself sends under
// these names is removed. Where two guards stand in one request's way, both
// must let it pass, and the last one decides whether the token goes on.
//
// It also serves the metadata of the resources of this host, without a token
// (RFC 9728): see `oauth_protected_resource`.
type BearerAuth struct {
	// Which requests need a token: those that fit one of these matcher sets.
	// From the others only the identity headers are removed. Default: every
	// request
	MatcherSetsRaw caddyhttp.RawMatcherSets `json:"match,omitempty" caddy:"namespace=http.matchers"`

	Rules

	// Lets requests without a token pass, without an identity. A token that is
	// not valid is refused all the same. Default: `false`
	Optional bool `json:"optional,omitempty"`

	// Leaves the token in the request that goes to the upstream. By default it
	// is removed: who holds it can use it as well as the client. Default: `false`
	ForwardToken bool `json:"forward_token,omitempty"`

	// Lets go on what was under way when its token expired or was revoked:
	// WebSockets, event streams, downloads. Default: `false`; such a response is
	// ended within 200 ms of its token's expiry, and at once by a revocation.
	KeepStreams bool `json:"keep_streams,omitempty"`

	// Refuses nothing, sets no identity and ends no stream, but counts and logs
	// what it would have refused, and why: a guard that is on trial before live
	// traffic. What clients send under the names of the identity headers is
	// removed all the same, and nothing else is changed. Default: `false`
	ReportOnly bool `json:"report_only,omitempty"`

	guard    *guard
	matchers caddyhttp.MatcherSets
}

// CaddyModule returns the Caddy module information.
func (BearerAuth) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.bearer_auth",
		New: func() caddy.Module { return new(BearerAuth) },
	}
}

// Provision sets up the guard and its matchers.
func (b *BearerAuth) Provision(ctx caddy.Context) (err error) {
	if b.guard, err = newGuard(ctx, b.Rules); err != nil {
		return err
	}
	sets, err := ctx.LoadModule(b, "MatcherSetsRaw")
	if err != nil {
		return fmt.Errorf("loading matchers: %w", err)
	}
	return b.matchers.FromInterface(sets)
}

func (b *BearerAuth) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	request := clean(r)
	if serveResource(w, r, b.guard.app) {
		return nil
	}
	matches, err := b.matchers.AnyMatchWithError(r)
	if matches && err == nil {
		return b.serveGuarded(w, request, next)
	}
	request.leave(nil)
	if err != nil {
		return err
	}
	return next.ServeHTTP(w, r)
}

func (b *BearerAuth) serveGuarded(w http.ResponseWriter, request cleaned, next caddyhttp.Handler) error {
	r := request.Request
	a, ref := b.guard.admit(request)
	if a == nil && ref == nil {
		if b.Optional {
			requestsAnonymous.Inc()
			return next.ServeHTTP(w, r)
		}
		ref = noToken()
	}
	if b.ReportOnly {
		b.guard.report(r, ref)
		return next.ServeHTTP(w, r)
	}
	if ref == nil {
		ref = a.count()
	}
	if ref != nil {
		return b.refuse(w, request, ref)
	}
	b.guard.accept(request, a)
	setIdentity(r, a, b.ForwardToken)
	defer a.end() // what comes then is another answer, an error route's
	if b.KeepStreams || a.watched {
		return next.ServeHTTP(w, r)
	}
	return b.watch(a, w, request, next)
}

// watch lets the request pass for as long as its token counts.
func (b *BearerAuth) watch(a *admission, w http.ResponseWriter, request cleaned, next caddyhttp.Handler) error {
	r := request.Request
	a.watched = true
	if err := a.stream.begin(&a.Access, w, request); err != nil {
		a.stream.closeUnreadable(w, r) // it may have been told already
		return b.refuse(w, request, refusalOf(err))
	}
	defer b.guard.noteCut(r, a) // after a panic too: so reverse_proxy ends what it can't complete
	err := a.stream.run(r, next)
	switch phase := a.stream.writer.phase.Load(); {
	case phase == refused:
		dropRepresentation(w.Header())
		a.stream.closeUnreadable(w, r)
		return b.refuse(w, request, invalidToken("revoked"))
	case phase > refused && !a.stream.writer.hijacked.Load():
		// So that the client does not take for whole what it has got.
		panic(http.ErrAbortHandler)
	}
	return err
}

func (b *BearerAuth) refuse(w http.ResponseWriter, request cleaned, ref *refusal) error {
	request.takeBack()
	b.guard.challenge(w, request.Request, ref)
	// No body: handle_errors may write one in the site's own form.
	return caddyhttp.Error(ref.status, errors.New(ref.reason))
}

// dropRepresentation removes the header fields of an answer that was given up before it
// began, so that another one may take its place.
func dropRepresentation(header http.Header) {
	for _, name := range []string{
		"Accept-Ranges", "Connection", "Content-Disposition", "Content-Encoding", "Content-Language", "Content-Length", "Content-Location",
		"Content-Range", "Content-Type", "Etag", "Last-Modified", "Location", "Set-Cookie", "Trailer", "Upgrade",
	} {
		delete(header, name)
	}
}

// Interface guards
var (
	_ caddy.Provisioner           = (*BearerAuth)(nil)
	_ caddyhttp.MiddlewareHandler = (*BearerAuth)(nil)
)
