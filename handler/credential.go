package handler

import (
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"

	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/internal/strictjson"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// serveBelowCredentials is whatever has a path below that of the collection.
func (c *ClientCredentials) serveBelowCredentials(w http.ResponseWriter, r *http.Request, path string) {
	clientID, below, _ := strings.Cut(path, "/")
	secretID, oneSecret := strings.CutPrefix(below, "secrets/")
	switch {
	case below == "secrets":
		c.serveSecrets(w, r, clientID)
	case oneSecret:
		c.serveSecret(w, r, clientID, secretID)
	default:
		c.serveCredential(w, r, path)
	}
}

// serveCredential is one credential: GET shows it, PATCH changes it, DELETE
// revokes it.
func (c *ClientCredentials) serveCredential(w http.ResponseWriter, r *http.Request, clientID string) {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		if by, ok := c.manager(w, r, issuer.ScopeRead, issuer.ScopeWrite); ok {
			c.show(w, r, by, clientID)
		}
	case http.MethodPatch:
		if by, ok := c.manager(w, r, issuer.ScopeWrite); ok {
			c.change(w, r, by, clientID)
		}
	case http.MethodDelete:
		if by, ok := c.manager(w, r, issuer.ScopeWrite); ok {
			c.revoke(w, r, by, clientID)
		}
	default:
		methodNotAllowed(w, "DELETE, GET, HEAD, PATCH")
	}
}

func (c *ClientCredentials) show(w http.ResponseWriter, r *http.Request, by issuer.Caller, clientID string) {
	iss, err := c.app.Open()
	var credential *issuer.Credential
	if err == nil {
		credential, err = iss.Get(r.Context(), by.Reach(), clientID)
	}
	if err != nil {
		c.refuseChange(w, r, "reading a credential", err)
		return
	}
	w.Header().Set("ETag", entityTag(credential))
	writeJSON(w, r, http.StatusOK, document(credential))
}

func (c *ClientCredentials) revoke(w http.ResponseWriter, r *http.Request, by issuer.Caller, clientID string) {
	iss, err := c.app.Open()
	if err == nil {
		err = iss.Revoke(r.Context(), by.Reach(), clientID)
	}
	if err != nil {
		c.refuseChange(w, r, "revoking a credential", err)
		return
	}
	iss.Record(r.Context(), changedBy(by, r, issuer.Change{Action: issuer.CredentialRevoked, ClientID: clientID}))
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusNoContent)
}

// change carries out a merge patch, RFC 7396.
func (c *ClientCredentials) change(w http.ResponseWriter, r *http.Request, by issuer.Caller, clientID string) {
	const mergePatch = "application/merge-patch+json"
	if name, _ := mediaType(r.Header); name != mergePatch && name != "application/json" && name != "text/json" {
		w.Header().Set("Accept-Patch", mergePatch) // RFC 5789 section 2.2
		writeProblem(w, http.StatusUnsupportedMediaType, "the body must be a merge patch, "+mergePatch+" or application/json, in UTF-8 and without a content coding")
		return
	}
	body, err := readBody(w, r)
	var patch issuer.Patch
	var named []string
	if err == nil {
		patch, named, err = parsePatch(body)
	}
	if err != nil {
		if !badInput(w, err) {
			writeProblem(w, http.StatusBadRequest, err.Error())
		}
		return
	}
	patch.Revisions = ifMatch(r.Header)
	iss, err := c.app.Open()
	var credential *issuer.Credential
	if err == nil {
		credential, err = iss.ChangeFor(r.Context(), by, clientID, patch)
	}
	if err != nil {
		c.refuseChange(w, r, "changing a credential", err)
		return
	}
	iss.Record(r.Context(), changedBy(by, r, issuer.Change{
		Action: issuer.CredentialChanged, ClientID: clientID, Account: credential.Account, Members: strings.Join(named, " "),
	}))
	w.Header().Set("ETag", entityTag(credential))
	writeJSON(w, r, http.StatusOK, document(credential))
}

// refuseChange answers where a credential can't be shown or changed.
func (c *ClientCredentials) refuseChange(w http.ResponseWriter, r *http.Request, doing string, err error) {
	switch {
	case c.badRequest(w, r, err):
	case errors.Is(err, issuer.ErrNotFound):
		writeProblem(w, http.StatusNotFound, noSuchCredential)
	case errors.Is(err, issuer.ErrChanged):
		writeProblem(w, http.StatusPreconditionFailed, "the credential is not as If-Match says: read it again")
	case errors.Is(err, issuer.ErrTooManySecrets), errors.Is(err, issuer.ErrLastSecret), errors.Is(err, issuer.ErrDeclared):
		writeProblem(w, http.StatusConflict, err.Error())
	case errors.Is(err, issuer.ErrFull) && r.Method != http.MethodDelete: // which has a reserve
		c.logger.Error("credential not changed", zap.Error(err))
		writeProblem(w, http.StatusInsufficientStorage,
			"the server's disk is full: until there is room again, credentials can be changed only to have less rights, and be revoked")
	default:
		c.fail(w, doing, err)
	}
}

const noSuchCredential = "there is no such credential"

func entityTag(c *issuer.Credential) string { return `"` + c.Revision() + `"` }

// ifMatch returns the revisions that the header field names, RFC 9110 section
// 13.1.1; nil where any will do. A weak tag matches none.
func ifMatch(header http.Header) []string {
	fields := header.Values("If-Match")
	if len(fields) == 0 {
		return nil
	}
	revisions := []string{}
	for _, field := range fields {
		for tag := range strings.SplitSeq(field, ",") { // which none of this server's has
			tag = strings.TrimSpace(tag)
			if tag == "*" {
				return nil
			}
			if len(tag) >= 2 && tag[0] == '"' && tag[len(tag)-1] == '"' {
				revisions = append(revisions, tag[1:len(tag)-1])
			}
		}
	}
	return revisions
}

// parsePatch reads the body that changes a credential, and returns the names of
// its members, too. What it does not know can't be changed, and is an error:
// whoever sends it believes that it is.
func parsePatch(body []byte) (p issuer.Patch, named []string, err error) {
	members, err := strictjson.Object(body)
	if err != nil {
		return p, nil, &issuer.InputError{Field: "the body", Problem: "is not one JSON object: " + err.Error()}
	}
	named = slices.Sorted(maps.Keys(members))
	for _, name := range named {
		raw := members[name]
		switch name {
		case "name":
			p.Name.Value, err = parseName(raw)
			p.Name.Named = true
		case "expires":
			p.Expires.Value, err = parseExpires(raw)
			p.Expires.Named = true
		case "scopes":
			p.Scopes.Value, err = parseList(name, raw)
			p.Scopes.Named = true
		case "audiences":
			p.Audiences.Value, err = parseList(name, raw)
			p.Audiences.Named = true
		case "grantable":
			p.Grantable.Value, err = parseList(name, raw)
			p.Grantable.Named = true
		case "tokenLifetime":
			p.TokenLifetime.Value, err = parseDuration(name, raw)
			p.TokenLifetime.Named = true
		case "tokensPerHour":
			p.TokensPerHour.Value, err = parseLimit(name, raw)
			p.TokensPerHour.Named = true
		case "requestsPerSecond":
			p.RequestsPerSecond.Value, err = parseLimit(name, raw)
			p.RequestsPerSecond.Named = true
		case "claims":
			if p.Claims.Named = true; !strictjson.Null(raw) {
				p.Claims.Value = raw
			}
		case "enabled":
			if err = json.Unmarshal(raw, &p.Enabled.Value); err != nil || strictjson.Null(raw) {
				err = &issuer.InputError{Field: name, Problem: "is neither true nor false"}
			}
			p.Enabled.Named = true
		default:
			err = &issuer.InputError{Field: "the body", Problem: "has a member that can't be changed; those that can are name, expires, scopes, audiences, grantable, tokenLifetime, tokensPerHour, requestsPerSecond, claims and enabled"}
		}
		if err != nil {
			return p, nil, err
		}
	}
	return p, named, nil
}
