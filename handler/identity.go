package handler

import (
	"context"
	"io"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

func init() {
	caddy.RegisterModule(StripIdentityHeaders{})
}

// StripIdentityHeaders removes what a client sends under the names of the
// headers that tell the upstream who it is: `X-Client-Id`, `X-Client-Scope` and
// `X-Client-Account`, in every letter case and with `_`, `.` or another sign for `-`,
// as header fields and as trailers. It also takes these names, and
// `Authorization`, out of the `Connection` header field, which would remove the
// true ones on their way to the upstream.
//
// The handler `bearer_auth` does the same, for requests that it does not guard
// too; put this one in front of the `bearer` provider, and on routes that have
// neither. It does its work once for a request: what is set after that stays.
type StripIdentityHeaders struct{}

// CaddyModule returns the Caddy module information.
func (StripIdentityHeaders) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "http.handlers.strip_identity_headers",
		New: func() caddy.Module { return new(StripIdentityHeaders) },
	}
}

func (StripIdentityHeaders) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	clean(r).leave(nil)
	return next.ServeHTTP(w, r)
}

const (
	headerClientID = "X-Client-Id"
	headerScope    = "X-Client-Scope"
	headerAccount  = "X-Client-Account"
)

// identityVar is among the variables of a request as soon as the client's own
// identity headers are gone; it is the *admission that a guard has left, if one
// has.
const identityVar = "client_credentials.identity"

// admission is what a guard leaves in the request for those that follow.
type admission struct {
	issuer.Access
	fields [4]string // the values of identityFields for the upstream

	counted bool // by a guard, towards a limit
	placed  bool // in the placeholders
	watched bool
	over    bool // what it was for is answered, or was refused
	stream  stream
}

// end has a guard of what follows, in an error route, ask anew what the token is worth.
func (a *admission) end() { a.over = true }

// cleaned is a request without identity headers of its client.
type cleaned struct {
	*http.Request
	vars      map[string]any
	replacer  *caddy.Replacer
	first     bool       // it was not clean before
	admission *admission // that another guard has left, if any
}

// clean removes the client's own identity headers, unless that was done for this
// request before: those that a guard has set since are not the client's. Who calls
// it calls leave, too: here it would be one more write to Caddy's map.
func clean(r *http.Request) cleaned {
	vars, _ := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any) // Caddy has both for each request
	replacer, _ := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	seen := vars[identityVar]
	if seen == nil {
		stripIdentity(r)
	}
	stripTrailers(r)
	a, _ := seen.(*admission)
	return cleaned{r, vars, replacer, seen == nil, a}
}

// leave has those that follow find the request clean, and whose it is if a guard has
// let it through.
func (c cleaned) leave(a *admission) {
	switch {
	case a == nil && c.first:
		c.vars[identityVar] = true
	case a != c.admission && a != nil:
		c.vars[identityVar] = a
	}
}

// takeBack has nobody be told any more whose the request is: it is refused.
func (c cleaned) takeBack() {
	if a, ok := c.vars[identityVar].(*admission); ok {
		a.end()
		deleteIdentity(c.Header)
	}
}

// setIdentity tells the upstream who the client is. The header fields' values
// are of this request alone, each in a slice of its own: Caddy edits them in
// place.
func setIdentity(r *http.Request, a *admission, forwardToken bool) {
	a.fields[0], a.fields[1], a.fields[2] = a.Token.ClientID, a.Token.Scope, a.Account
	for n, name := range identityFields {
		if a.fields[n] == "" || n == tokenField && !forwardToken {
			delete(r.Header, name)
		} else {
			r.Header[name] = a.fields[n : n+1 : n+1]
		}
	}
}

// identityFields are those that say who the client is: the last one by its token, as it
// came, or as it was edited in place between two guards.
var identityFields = [...]string{headerClientID, headerScope, headerAccount, tokenField: "Authorization"}

const tokenField = 3

// setPlaceholders tells Caddy who the client is: it asks when somebody else
// does.
func setPlaceholders(r cleaned, a *admission) {
	if r.replacer != nil && !a.placed {
		a.placed = true
		r.replacer.Map(a.placeholder)
	}
}

func (a *admission) placeholder(key string) (any, bool) {
	name, ours := strings.CutPrefix(key, "http.auth.user.")
	if !ours {
		return nil, false
	}
	if name == "id" {
		return a.Token.ClientID, true
	}
	value, known := userField(&a.Access, name)
	return value, known
}

// metadata is what `{http.auth.user.*}` says beside the id.
func metadata(a *issuer.Access) map[string]string {
	fields := make(map[string]string)
	for _, name := range []string{"scope", "account", "name", "jti"} {
		fields[name], _ = userField(a, name)
	}
	return fields
}

func userField(a *issuer.Access, name string) (value string, known bool) {
	switch name {
	case "scope":
		return a.Token.Scope, true
	case "account":
		return a.Account, true
	case "name":
		c, err := a.Credential(context.Background())
		if err != nil || c.Name == nil {
			return "", true
		}
		return *c.Name, true
	case "jti":
		return a.Token.ID, true
	}
	return "", false
}

func stripIdentity(r *http.Request) {
	for name, values := range r.Header {
		switch {
		case isIdentityHeader(name):
			delete(r.Header, name)
		case name == "Connection":
			r.Header[name] = keepFromConnection(values)
		}
	}
}

// stripTrailers is for each request that has the same trailers, too: Caddy's tracing
// handler makes a copy, and an error route gets the one before.
func stripTrailers(r *http.Request) {
	if r.Trailer == nil {
		return
	}
	if _, stripped := r.Body.(*trailerStripper); !stripped {
		deleteIdentity(r.Trailer)
		// A trailer that was not announced arrives with the end of the body.
		r.Body = &trailerStripper{ReadCloser: r.Body, trailer: r.Trailer}
	}
}

func deleteIdentity(header http.Header) {
	for name := range header {
		if isIdentityHeader(name) {
			delete(header, name)
		}
	}
}

// isIdentityHeader knows the names in every spelling that some upstream takes
// for the same: CGI and its kin fold case, and one sign or another into "_".
func isIdentityHeader(name string) bool {
	return spells(name, headerClientID) || spells(name, headerScope) || spells(name, headerAccount)
}

// spells reports whether two names have the same letters, in whatever case,
// and signs in the same places.
func spells(name, known string) bool {
	if len(name) != len(known) {
		return false
	}
	for i := range len(name) {
		a, b := name[i]|0x20, known[i]|0x20
		if letter := 'a' <= b && b <= 'z'; letter && a != b || !letter && ('a' <= a && a <= 'z' || '0' <= a && a <= '9') {
			return false
		}
	}
	return true
}

// keepFromConnection returns the Connection header field without the names that
// reverse_proxy must not remove on the client's word (RFC 9110 section 7.6.1).
func keepFromConnection(values []string) []string {
	kept := make([]string, 0, len(values))
	for _, value := range values {
		var options []string
		for option := range strings.SplitSeq(value, ",") {
			option = strings.TrimSpace(option)
			if option != "" && !isIdentityHeader(option) && !strings.EqualFold(option, "Authorization") {
				options = append(options, option)
			}
		}
		if len(options) > 0 {
			kept = append(kept, strings.Join(options, ", "))
		}
	}
	return kept
}

// trailerStripper removes identity trailers when the body ends, which is when
// the server has added those that came.
type trailerStripper struct {
	io.ReadCloser
	trailer http.Header
}

func (t *trailerStripper) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	if err != nil {
		deleteIdentity(t.trailer)
	}
	return n, err
}

// Interface guards
var _ caddyhttp.MiddlewareHandler = StripIdentityHeaders{}
