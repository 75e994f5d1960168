package handler

import (
	"net/http"

	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// introspection is the answer of RFC 7662 section 2.2 for a token that counts.
type introspection struct {
	Active    bool     `json:"active"`
	Scope     string   `json:"scope,omitempty"`
	ClientID  string   `json:"client_id"`
	TokenType string   `json:"token_type"`
	Expires   int64    `json:"exp"`
	IssuedAt  int64    `json:"iat"`
	Subject   string   `json:"sub"`
	Audience  audience `json:"aud"`
	Issuer    string   `json:"iss"`
	ID        string   `json:"jti"`
}

// audience is a string where there is one, and an array where there are more.
type audience []string

func (a audience) MarshalJSON() ([]byte, error) {
	if len(a) == 1 {
		return marshal(a[0]), nil
	}
	return marshal([]string(a)), nil
}

// serveIntrospect is the introspection endpoint, RFC 7662. Of a token that does
// not count, and of one that is not for the caller to know of, it says that it
// is not active, and nothing else.
func (c *ClientCredentials) serveIntrospect(w http.ResponseWriter, r *http.Request) {
	const doing = "introspecting a token"
	q := c.askAboutToken(w, r, doing)
	if q == nil {
		return
	}
	t, err := q.issuer.Introspect(r.Context(), q.caller, q.token)
	switch {
	case err != nil:
		c.failCaller(w, r, doing, err)
	case t == nil:
		introspectionsInactive.Inc()
		writeJSON(w, r, http.StatusOK, map[string]bool{"active": false})
	default:
		introspectionsActive.Inc()
		writeJSON(w, r, http.StatusOK, c.introspection(t))
	}
}

func (c *ClientCredentials) introspection(t *issuer.Token) introspection {
	return introspection{
		Active:    true,
		Scope:     t.Scope,
		ClientID:  t.ClientID,
		TokenType: "Bearer",
		Expires:   t.Expires().Unix(),
		IssuedAt:  t.IssuedAt().Unix(),
		Subject:   t.ClientID,
		Audience:  t.Audience(),
		Issuer:    c.app.Policy().Issuer,
		ID:        t.ID,
	}
}
