package handler

import (
	"errors"
	"net/http"
	"strings"

	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// tokenQuestion is a request about a token: introspection (RFC 7662 section
// 2.1) or revocation (RFC 7009 section 2.1).
type tokenQuestion struct {
	issuer *issuer.Issuer
	caller issuer.Caller
	token  string
}

// askAboutToken reads a request about a token and authenticates its caller. It
// answers, and returns nil, where it refuses.
func (c *ClientCredentials) askAboutToken(w http.ResponseWriter, r *http.Request, doing string) *tokenQuestion {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		writeTokenError(w, r, http.StatusMethodNotAllowed, "invalid_request", "this endpoint takes POST")
		return nil
	}
	token, body, err := parseTokenQuestion(w, r)
	if err != nil {
		status, refused := malformed(err)
		c.refuseCaller(w, r, doing, status, refused)
		return nil
	}
	iss, err := c.app.Open()
	if err != nil {
		c.failCaller(w, r, doing, err)
		return nil
	}
	caller, ok := c.caller(w, r, iss, body, doing)
	if !ok {
		return nil
	}
	if token == "" { // known only to who may ask
		c.refuseCaller(w, r, doing, http.StatusBadRequest,
			&issuer.TokenError{Code: "invalid_request", Description: "token is missing", Reason: "token missing"})
		return nil
	}
	return &tokenQuestion{iss, caller, token}
}

// caller authenticates who asks: by a bearer token, or as at the token
// endpoint. It answers where it refuses.
func (c *ClientCredentials) caller(w http.ResponseWriter, r *http.Request, iss *issuer.Issuer, body bodyAuthentication, doing string) (issuer.Caller, bool) {
	_, scheme, _, _ := authorization(r.Header)
	request := clean(r)
	// A guard in front of the endpoints has taken the token out of the request.
	bearer := strings.EqualFold(scheme, "bearer") || request.admission != nil
	if bearer && body.secret == "" && body.assertion == "" {
		a, ref := c.guard.admit(request)
		if ref != nil {
			c.guard.challenge(w, r, ref)
			c.writeRefusal(w, r, ref)
			return issuer.Caller{}, false
		}
		c.guard.accept(request, a)
		caller, err := a.Caller(r.Context())
		if err != nil {
			c.failCaller(w, r, doing, err)
			return issuer.Caller{}, false
		}
		return caller, true
	}
	request.leave(nil)
	auth, err := c.clientAuthentication(r, body)
	if err != nil {
		status, refused := malformed(err)
		c.refuseCaller(w, r, doing, status, refused)
		return issuer.Caller{}, false
	}
	caller, err := iss.Authenticate(r.Context(), auth)
	if refused, ok := errors.AsType[*issuer.TokenError](err); ok {
		c.refuseCaller(w, r, doing, statusOf(refused), refused)
		return issuer.Caller{}, false
	}
	if err != nil {
		c.failCaller(w, r, doing, err)
		return issuer.Caller{}, false
	}
	noteClient(r, caller.Credential.ClientID)
	return caller, true
}

// writeRefusal answers a refusal of the guard in the form of these endpoints.
func (c *ClientCredentials) writeRefusal(w http.ResponseWriter, r *http.Request, ref *refusal) {
	if ref.status == http.StatusServiceUnavailable {
		writeTokenError(w, r, ref.status, "temporarily_unavailable", "the server cannot tell now whether the token is valid")
		return
	}
	writeTokenError(w, r, ref.status, ref.code, ref.description)
}

func (c *ClientCredentials) refuseCaller(w http.ResponseWriter, r *http.Request, doing string, status int, refused *issuer.TokenError) {
	noteRefusal(r, refused.Reason, refused.ClientID)
	if c.limited(w, r, refused) {
		return
	}
	c.logger.Info("request refused", zap.String("doing", doing), zap.String("error", refused.Code),
		zap.String("reason", refused.Reason), zap.String("client_id", refused.ClientID), zap.String("remote_ip", clientIP(r)))
	c.writeTokenRefusal(w, r, status, refused)
}

// failCaller answers where the server cannot tell.
func (c *ClientCredentials) failCaller(w http.ResponseWriter, r *http.Request, doing string, err error) {
	if isClientGone(r, err) {
		w.WriteHeader(statusClientGone) // for the access log: nobody reads it
		return
	}
	logFailure(c.logger, "request failed", err, zap.String("doing", doing))
	w.Header().Set("Retry-After", retryAfter)
	writeTokenError(w, r, http.StatusServiceUnavailable, "temporarily_unavailable", "the server can't do this now")
}

// parseTokenQuestion reads the form. A token_type_hint says nothing that the
// token does not say itself.
func parseTokenQuestion(w http.ResponseWriter, r *http.Request) (token string, body bodyAuthentication, err error) {
	fields, form, err := readFields(w, r)
	if err != nil {
		return "", body, err
	}
	if !form {
		return "", body, errNoForm
	}
	seen := make(map[string]bool, len(fields))
	for _, f := range fields {
		if seen[f.name] {
			return "", body, errTwice
		}
		seen[f.name] = true
		if f.name == "token" {
			token = f.value
		}
		body.take(f.name, f.value)
	}
	return token, body, nil
}
