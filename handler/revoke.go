package handler

import (
	"errors"
	"net/http"

	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// serveRevoke is the revocation endpoint, RFC 7009. It answers 200 for a token
// that was revoked, durably, and for one that did not count anyway.
func (c *ClientCredentials) serveRevoke(w http.ResponseWriter, r *http.Request) {
	const doing = "revoking a token"
	q := c.askAboutToken(w, r, doing)
	if q == nil {
		return
	}
	t, err := q.issuer.RevokeToken(r.Context(), q.caller, q.token)
	switch {
	case errors.Is(err, issuer.ErrForeignToken):
		// RFC 6749 section 5.2 has this code for what "was issued to another client".
		c.refuseCaller(w, r, doing, http.StatusBadRequest,
			&issuer.TokenError{Code: "invalid_grant", Description: err.Error(), Reason: "token of another client"})
	case err != nil:
		c.failCaller(w, r, doing, err)
	default:
		if t != nil {
			q.issuer.Record(r.Context(), changedBy(q.caller, r, issuer.Change{
				Action: issuer.TokenRevoked, ClientID: t.ClientID, TokenID: t.ID,
			}))
		}
		writeJSON(w, r, http.StatusOK, struct{}{}) // RFC 7009 needs no body, but some clients want JSON
	}
}
