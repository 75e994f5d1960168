package handler

import (
	"bytes"
	"errors"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/internal/strictjson"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// tokenError is an error document by RFC 6749 section 5.2.
type tokenError struct {
	Code        string `json:"error"`
	Description string `json:"error_description,omitempty"`
}

// The two dialects of a token answer.
type (
	standardToken struct {
		AccessToken string `json:"access_token"`
		TokenType   string `json:"token_type"`
		ExpiresIn   int64  `json:"expires_in"`
		Scope       string `json:"scope,omitempty"`
	}
	originalToken struct {
		AccessToken string `json:"accessToken"`
		TokenType   string `json:"tokenType"`
		ExpiresIn   int64  `json:"expiresIn"`
	}
)

// tokenRequest is a request for a token, of either dialect.
type tokenRequest struct {
	issuer.TokenRequest
	body    bodyAuthentication
	dialect string // empty where nothing tells
}

// The dialects of a token request, by how it spells its parameters.
const (
	dialectStandard = "standard"
	dialectOriginal = "original"
)

// field is one parameter of a request, as it was named.
type field struct{ name, value string }

// serveToken is the token endpoint. The order of its checks is the one that
// tells least: form, then the client, then what it asks for.
func (c *ClientCredentials) serveToken(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		writeTokenError(w, r, http.StatusMethodNotAllowed, "invalid_request", "the token endpoint takes POST")
		return
	}
	req, err := c.parseTokenRequest(w, r)
	if err != nil {
		status, refused := malformed(err)
		c.refuseToken(w, r, req.dialect, status, refused)
		return
	}
	iss, err := c.app.Open()
	if err != nil {
		c.failToken(w, r, req.dialect, err)
		return
	}
	issued, err := iss.Issue(r.Context(), req.TokenRequest)
	refused, isRefusal := errors.AsType[*issuer.TokenError](err)
	limited, isLimited := errors.AsType[*issuer.LimitError](err)
	switch {
	case isLimited:
		countToken(req.dialect, "refused", "too many tokens")
		noteRefusal(r, "too many tokens", req.ClientID)
		writeLimit(w.Header(), limited)
		writeTokenError(w, r, http.StatusTooManyRequests, "temporarily_unavailable", "the client has got as many tokens as it may for now, try again later")
	case isRefusal:
		c.refuseToken(w, r, req.dialect, statusOf(refused), refused)
	case err != nil:
		c.failToken(w, r, req.dialect, err)
	default:
		noteClient(r, issued.ClientID)
		writeToken(w, r, issued, req.dialect)
	}
}

// malformed returns the refusal of a request that can't be read.
func malformed(err error) (status int, refused *issuer.TokenError) {
	refused = &issuer.TokenError{Code: "invalid_request", Description: err.Error(), Reason: err.Error()}
	switch {
	case errors.Is(err, errTooLarge):
		return http.StatusRequestEntityTooLarge, refused
	case errors.Is(err, errMalformedBasic):
		refused.Code, refused.Description = "invalid_client", "client authentication failed"
	}
	return statusOf(refused), refused
}

// statusOf returns the status of an error by RFC 6749 section 5.2.
func statusOf(refused *issuer.TokenError) int {
	if refused.Code == "invalid_client" {
		return http.StatusUnauthorized
	}
	return http.StatusBadRequest
}

func writeToken(w http.ResponseWriter, r *http.Request, issued *issuer.IssuedToken, dialect string) {
	if dialect == dialectOriginal {
		originalsIssued.Inc()
		writeJSON(w, r, http.StatusOK, originalToken{
			AccessToken: issued.Token,
			TokenType:   "bearer",
			ExpiresIn:   int64(issued.ExpiresIn / time.Second),
		})
		return
	}
	tokensIssued.Inc()
	writeJSON(w, r, http.StatusOK, standardToken{
		AccessToken: issued.Token,
		TokenType:   "Bearer",
		ExpiresIn:   int64(issued.ExpiresIn / time.Second),
		Scope:       issued.Scope,
	})
}

func (c *ClientCredentials) refuseToken(w http.ResponseWriter, r *http.Request, dialect string, status int, refused *issuer.TokenError) {
	noteRefusal(r, refused.Reason, refused.ClientID)
	if c.limited(w, r, refused) {
		countToken(dialect, "refused", "too many failures")
		return
	}
	countToken(dialect, "refused", refused.Reason)
	c.logger.Info("token refused", zap.String("error", refused.Code), zap.String("reason", refused.Reason),
		zap.String("client_id", refused.ClientID), zap.String("remote_ip", clientIP(r)))
	c.writeTokenRefusal(w, r, status, refused)
}

// writeTokenRefusal answers a refusal of the client, or of what it asks for.
func (c *ClientCredentials) writeTokenRefusal(w http.ResponseWriter, r *http.Request, status int, refused *issuer.TokenError) {
	if status == http.StatusUnauthorized { // RFC 9110 section 15.5.2: it always carries a challenge
		w.Header().Set("WWW-Authenticate", `Basic realm="`+c.guard.Realm+`"`)
	}
	writeTokenError(w, r, status, refused.Code, refused.Description)
}

func (c *ClientCredentials) failToken(w http.ResponseWriter, r *http.Request, dialect string, err error) {
	if isClientGone(r, err) {
		countToken(dialect, "refused", reasonClientGone)
	} else {
		countToken(dialect, "failed", "cannot tell")
	}
	c.failCaller(w, r, "issuing a token", err)
}

func writeTokenError(w http.ResponseWriter, r *http.Request, status int, code, description string) {
	writeJSON(w, r, status, tokenError{code, description})
}

var (
	errNoForm = errors.New("the body must be application/x-www-form-urlencoded, in UTF-8")
	errTwice  = errors.New("a parameter is given twice") // RFC 6749 section 3.2
)

// parseTokenRequest reads a request of either dialect. Its errors are fit for
// an error_description, and repeat nothing of what was sent.
func (c *ClientCredentials) parseTokenRequest(w http.ResponseWriter, r *http.Request) (req tokenRequest, err error) {
	fields, form, err := readFields(w, r)
	if err != nil {
		return req, err
	}
	if req, err = assembleTokenRequest(fields, form); err != nil {
		return req, err
	}
	if req.ClientAuthentication, err = c.clientAuthentication(r, req.body); err != nil {
		return req, err
	}
	if req.GrantType == "" && req.ClientID == "" && req.Assertion == nil {
		return req, errors.New("grant_type is missing")
	}
	return req, nil
}

// readFields reads the parameters of the body, and whether it is a form. The
// URI's query is not looked at: no secret belongs there (RFC 6749 section 2.3.1).
func readFields(w http.ResponseWriter, r *http.Request) (fields []field, form bool, err error) {
	name, params := mediaType(r.Header)
	switch {
	case name == "application/x-www-form-urlencoded", name == "multipart/form-data", isJSON(name):
	default:
		return nil, false, errNoForm
	}
	body, err := readBody(w, r)
	if err != nil {
		return nil, false, err
	}
	switch name {
	case "application/x-www-form-urlencoded":
		fields, err = formFields(string(body))
		return fields, true, err
	case "multipart/form-data":
		fields, err = multipartFields(body, params["boundary"])
		return fields, false, err
	}
	fields, err = jsonFields(body)
	return fields, false, err
}

const (
	maxFields   = 10_000 // as in net/url: a parameter takes many times the memory of its bytes
	usualFields = 5      // grant_type, client_id, client_secret, scope, resource
)

// formFields reads what url.ParseQuery does, in the order of the body.
func formFields(body string) ([]field, error) {
	if strings.Count(body, "&") >= maxFields {
		return nil, errors.New("the body has too many parameters")
	}
	fields := make([]field, 0, usualFields)
	for pair := range strings.SplitSeq(body, "&") {
		if pair == "" {
			continue
		}
		name, value, _ := strings.Cut(pair, "=")
		name, nameErr := url.QueryUnescape(name)
		value, valueErr := url.QueryUnescape(value)
		if nameErr != nil || valueErr != nil || strings.Contains(pair, ";") { // at which some servers part pairs
			return nil, errors.New("the body is not form-urlencoded")
		}
		fields = append(fields, field{name, value})
	}
	return fields, nil
}

func multipartFields(body []byte, boundary string) ([]field, error) {
	malformed := errors.New("the body is not multipart/form-data")
	// The reader takes a body without its last boundary for a whole one.
	if boundary == "" || !bytes.Contains(body, []byte("--"+boundary+"--")) {
		return nil, malformed
	}
	var fields []field
	parts := multipart.NewReader(bytes.NewReader(body), boundary)
	for {
		part, err := parts.NextRawPart()
		if errors.Is(err, io.EOF) {
			return fields, nil
		}
		if err != nil {
			return nil, malformed
		}
		value, err := io.ReadAll(part)
		if err != nil || part.FormName() == "" {
			return nil, malformed
		}
		fields = append(fields, field{part.FormName(), string(value)})
	}
}

func jsonFields(body []byte) ([]field, error) {
	members, err := strictjson.Object(body)
	if err != nil {
		return nil, errors.New("the body is not one JSON object: " + err.Error())
	}
	var fields []field
	for name, raw := range members {
		value, ok := strictjson.String(raw)
		switch {
		case !ok && strictjson.Null(raw):
			value = ""
		case !ok && (isStandardName(name) || originalName(name) != ""):
			return nil, errors.New("a parameter is not a string")
		}
		fields = append(fields, field{name, value})
	}
	return fields, nil
}

// isStandardName knows the parameters by RFC 6749's spelling.
func isStandardName(name string) bool {
	switch name {
	case "grant_type", "client_id", "client_secret", assertionParam, assertionTypeParam, "scope", "resource":
		return true
	}
	return false
}

// originalName returns the parameter that the original dialect knows by that
// name, whatever its letter case.
func originalName(name string) string {
	for _, known := range []string{"GrantType", "ClientId", "ClientSecret"} {
		// Lengths in bytes tell ASCII from letters that only fold to it.
		if len(name) == len(known) && strings.EqualFold(name, known) {
			return known
		}
	}
	return ""
}

// assembleTokenRequest settles the dialect. Parameters that no dialect knows
// are left alone, and those without a value count as absent (RFC 6749 section
// 3.2), but none may be given twice.
func assembleTokenRequest(fields []field, form bool) (req tokenRequest, err error) {
	standard, original := false, false
	seen := make(map[string]bool, len(fields))
	for _, f := range fields {
		name := f.name
		if known := originalName(name); known != "" {
			name, original = known, true
		} else if isStandardName(name) {
			standard = true
		}
		if seen[name] && name != "resource" { // RFC 8707 section 2
			return req, errTwice
		}
		seen[name] = true
		if f.value == "" {
			continue
		}
		switch name {
		case "grant_type", "GrantType":
			req.GrantType = f.value
		case "ClientId":
			req.body.clientID = f.value
		case "ClientSecret":
			req.body.secret = f.value
		case "scope":
			req.Scope = f.value
		case "resource":
			req.Resources = append(req.Resources, f.value)
		default:
			req.body.take(name, f.value)
		}
	}
	switch {
	case standard && original:
		return req, errors.New("parameters of both spellings in one request")
	case standard && !form:
		return req, errNoForm
	case standard:
		req.dialect = dialectStandard
	case original:
		req.dialect = dialectOriginal
	}
	return req, nil
}
