package handler

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// credentialDocument is how the API shows a credential.
type credentialDocument struct {
	CredentialID string     `json:"credentialId"`
	ClientID     string     `json:"clientId"`
	Name         *string    `json:"name"`
	Secret       *string    `json:"secret"`
	Expires      *timestamp `json:"expires"`
	Created      timestamp  `json:"created"`

	// Beyond the wire contract: only on credentials that were made or changed with
	// them.
	Scopes    *[]string `json:"scopes,omitempty"`
	Audiences *[]string `json:"audiences,omitempty"`

	Keys    *issuer.KeySet `json:"jwks,omitempty"`
	KeysURL string         `json:"jwksUri,omitempty"`

	Account   string    `json:"account,omitempty"`
	Grantable *[]string `json:"grantable,omitempty"`

	TokenLifetime string          `json:"tokenLifetime,omitempty"`
	TokensPerHour int             `json:"tokensPerHour,omitempty"`
	PerSecond     int             `json:"requestsPerSecond,omitempty"`
	Claims        json.RawMessage `json:"claims,omitempty"`
	Enabled       *bool           `json:"enabled,omitempty"`
}

// foundDocument is how it shows one that was asked for by more than the account.
type foundDocument struct {
	credentialDocument
	Status   string     `json:"status"`
	LastUsed *timestamp `json:"lastUsed"`
}

// timestamp is a time in UTC with milliseconds always written.
type timestamp time.Time

func (t timestamp) MarshalJSON() ([]byte, error) {
	return []byte(time.Time(t).UTC().Format(`"2006-01-02T15:04:05.000Z"`)), nil
}

func timestampOrNull(t time.Time) *timestamp {
	if t.IsZero() {
		return nil
	}
	shown := timestamp(t)
	return &shown
}

// CreatedDocument returns the document that shows a new credential with its
// secret, in the form of the API.
func CreatedDocument(c *issuer.Credential, secret string) []byte {
	d := document(c)
	d.Secret = &secret
	return marshal(d)
}

func document(c *issuer.Credential) credentialDocument {
	d := credentialDocument{
		CredentialID: c.ID,
		ClientID:     c.ClientID,
		Name:         c.Name,
		Created:      timestamp(c.Created),
		Expires:      timestampOrNull(c.Expires),
	}
	if slices.Contains(c.Named, "scopes") {
		scopes := append([]string{}, c.Scopes...) // [], not null
		d.Scopes = &scopes
	}
	if slices.Contains(c.Named, "audiences") {
		d.Audiences = &c.Audiences
	}
	if slices.Contains(c.Named, "jwks") {
		d.Keys = c.Keys
	}
	if slices.Contains(c.Named, "jwksUri") {
		d.KeysURL = c.KeysURL
	}
	if slices.Contains(c.Named, "account") {
		d.Account = c.Account
	}
	if slices.Contains(c.Named, "grantable") {
		d.Grantable = &c.Grantable
	}
	if slices.Contains(c.Named, "tokenLifetime") {
		d.TokenLifetime = duration(c.TokenLifetime)
	}
	if slices.Contains(c.Named, "tokensPerHour") {
		d.TokensPerHour = c.TokensPerHour
	}
	if slices.Contains(c.Named, "requestsPerSecond") {
		d.PerSecond = c.RequestsPerSecond
	}
	if slices.Contains(c.Named, "claims") {
		d.Claims = c.Claims
	}
	if slices.Contains(c.Named, "enabled") {
		enabled := !c.Disabled
		d.Enabled = &enabled
	}
	return d
}

// serveCredentials is the collection: POST creates, GET lists, DELETE revokes all
// that its parameters select.
func (c *ClientCredentials) serveCredentials(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodPost:
		if by, ok := c.manager(w, r, issuer.ScopeWrite); ok {
			c.create(w, r, by)
		}
	case http.MethodGet, http.MethodHead:
		if by, ok := c.manager(w, r, issuer.ScopeRead, issuer.ScopeWrite); ok {
			c.list(w, r, by)
		}
	case http.MethodDelete:
		if by, ok := c.manager(w, r, issuer.ScopeWrite); ok {
			c.revokeAll(w, r, by)
		}
	default:
		methodNotAllowed(w, "DELETE, GET, HEAD, POST")
	}
}

func (c *ClientCredentials) create(w http.ResponseWriter, r *http.Request, by issuer.Caller) {
	if name, _ := mediaType(r.Header); !isJSON(name) {
		unsupportedMediaType(w)
		return
	}
	body, err := readBody(w, r)
	if err == nil {
		var draft issuer.Draft
		if draft, err = parseDraft(body); err == nil {
			draft.IdempotencyKey, err = idempotencyKey(r.Header)
		}
		if err == nil {
			c.createFrom(w, r, by, draft)
			return
		}
	}
	if !badInput(w, err) {
		writeProblem(w, http.StatusBadRequest, err.Error())
	}
}

func (c *ClientCredentials) createFrom(w http.ResponseWriter, r *http.Request, creator issuer.Caller, draft issuer.Draft) {
	iss, err := c.app.Open()
	if err != nil {
		c.fail(w, "creating a credential", err)
		return
	}
	credential, secret, err := iss.CreateFor(r.Context(), creator, draft)
	repeated, isRepeated := errors.AsType[*issuer.RepeatedError](err)
	switch {
	case isRepeated:
		writeBody(w, http.StatusConflict, "application/problem+json", marshal(problem{
			Type: "about:blank", Title: http.StatusText(http.StatusConflict), Status: http.StatusConflict,
			Detail: repeated.Error(), ClientID: repeated.ClientID,
		}))
	case c.badRequest(w, r, err):
	case errors.Is(err, issuer.ErrFull):
		c.logger.Error("credential not created", zap.Error(err))
		writeProblem(w, http.StatusInsufficientStorage,
			"the server's disk is full: no credential can be created until there is room again; those that exist go on working, and can be revoked")
	case err != nil:
		c.fail(w, "creating a credential", err)
	default:
		iss.Record(r.Context(), changedBy(creator, r, issuer.Change{
			Action: issuer.CredentialCreated, ClientID: credential.ClientID, Account: credential.Account,
			Scope: strings.Join(credential.Scopes, " "),
		}))
		w.Header().Set("Location", collectionPath(r)+"/"+credential.ClientID)
		writeJSON(w, r, http.StatusCreated, json.RawMessage(CreatedDocument(credential, secret)))
	}
}

// list answers with all active credentials, as the wire contract has it, or with a
// page of those that the query asks for.
func (c *ClientCredentials) list(w http.ResponseWriter, r *http.Request, by issuer.Caller) {
	query, values, err := parseQuery(r.URL.RawQuery)
	if badInput(w, err) {
		return
	}
	if values.Has("account") {
		if !c.reaches(w, r, by, query.Account) {
			return
		}
	} else {
		query.Account = by.Reach()
	}
	iss, err := c.app.Open()
	var documents any
	switch all := len(values) == 0 || len(values) == 1 && values.Has("account"); {
	case err != nil:
	case all:
		documents, err = listAll(r, iss, query.Account)
	default:
		documents, err = listPage(w, r, iss, query, values)
	}
	if badInput(w, err) {
		return
	}
	if err != nil {
		c.fail(w, "listing credentials", err)
		return
	}
	writeJSON(w, r, http.StatusOK, documents)
}

func listAll(r *http.Request, iss *issuer.Issuer, account string) ([]credentialDocument, error) {
	credentials, err := iss.List(r.Context(), account)
	documents := make([]credentialDocument, len(credentials))
	for i, credential := range credentials {
		documents[i] = document(credential)
	}
	return documents, err
}

func listPage(w http.ResponseWriter, r *http.Request, iss *issuer.Issuer, query issuer.Query, values url.Values) ([]foundDocument, error) {
	page, err := iss.Find(r.Context(), query)
	if err != nil {
		return nil, err
	}
	documents := make([]foundDocument, len(page.Credentials))
	for i, found := range page.Credentials {
		documents[i] = foundDocument{document(found.Credential), found.Status(time.Now()), timestampOrNull(found.LastUsed)}
	}
	if page.Next != "" { // RFC 8288
		values.Set("cursor", page.Next)
		w.Header().Set("Link", "<"+collectionPath(r)+"?"+values.Encode()+`>; rel="next"`)
	}
	return documents, nil
}

// parseQuery reads the query of a list. What it does not know might be meant to
// narrow that, so it is an error.
func parseQuery(text string) (q issuer.Query, values url.Values, err error) {
	if values, err = url.ParseQuery(text); err != nil {
		return q, nil, &issuer.InputError{Field: "the query", Problem: "can't be read"}
	}
	for _, name := range slices.Sorted(maps.Keys(values)) {
		value := values.Get(name)
		switch name {
		case "account":
			q.Account = value
		case "name":
			q.Name = value
		case "scope":
			q.Scope = value
		case "status":
			q.Status = value
		case "cursor":
			q.Cursor = value
		case "limit":
			q.Limit, err = strconv.Atoi(value)
			if err != nil || q.Limit < 1 {
				err = &issuer.InputError{Field: name, Problem: "is no positive number"}
			}
		case "unusedSince":
			q.UnusedSince, err = parseQueryTime(name, value)
		case "expiresBefore":
			q.ExpiresBefore, err = parseQueryTime(name, value)
		default:
			return q, nil, &issuer.InputError{Field: "the query", Problem: "has a parameter that is not known; those that are: account, cursor, expiresBefore, limit, name, scope, status, unusedSince"}
		}
		switch {
		case len(values[name]) > 1:
			err = &issuer.InputError{Field: name, Problem: "is given more than once"}
		case value == "":
			err = &issuer.InputError{Field: name, Problem: "is empty"}
		}
		if err != nil {
			return q, nil, err
		}
	}
	return q, values, nil
}

func parseQueryTime(name, value string) (time.Time, error) {
	t, err := ParseTime(value)
	if err != nil {
		return t, &issuer.InputError{Field: name, Problem: err.Error()}
	}
	return t, nil
}

// revokedDocument says how many credentials were revoked.
type revokedDocument struct {
	Revoked int `json:"revoked"`
}

// revokeAll revokes what the query selects, but for the caller itself.
func (c *ClientCredentials) revokeAll(w http.ResponseWriter, r *http.Request, by issuer.Caller) {
	selection, err := parseSelection(r.URL.RawQuery)
	if badInput(w, err) || selection.Account != "" && !c.reaches(w, r, by, selection.Account) {
		return
	}
	iss, err := c.app.Open()
	if err != nil {
		c.fail(w, "revoking credentials", err)
		return
	}
	revoked, err := iss.RevokeAll(r.Context(), by.Reach(), selection, by.Credential.ClientID, func(ctx context.Context, one *issuer.Credential) {
		iss.Record(ctx, changedBy(by, r, issuer.Change{
			Action: issuer.CredentialRevoked, ClientID: one.ClientID, Account: one.Account,
		}))
	})
	switch {
	case badInput(w, err):
	case errors.Is(err, issuer.ErrNotFound):
		writeProblem(w, http.StatusNotFound, noSuchCredential)
	case err != nil:
		c.fail(w, "revoking credentials", err)
	default:
		writeJSON(w, r, http.StatusOK, revokedDocument{revoked})
	}
}

// parseSelection reads the query of a request that revokes many credentials. What
// it does not know might be meant to narrow that, so it is an error.
func parseSelection(query string) (s issuer.Selection, err error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return s, &issuer.InputError{Field: "the query", Problem: "can't be read"}
	}
	if len(values) == 1 && len(values["account"]) == 1 {
		s.Account = values.Get("account")
	}
	if len(values) == 1 && len(values["createdBy"]) == 1 {
		s.CreatedBy = values.Get("createdBy")
	}
	if s.Account == "" && s.CreatedBy == "" {
		err = &issuer.InputError{Field: "the query", Problem: "has to be either account= or createdBy=, once, and nothing else: it says which credentials are revoked"}
	}
	return s, err
}

// changedBy says who has asked for a change, and from where.
func changedBy(by issuer.Caller, r *http.Request, c issuer.Change) issuer.Change {
	c.By, c.From = by.Credential.ClientID, clientIP(r)
	return c
}

// collectionPath is the path that the client itself sees: before any rewrite.
func collectionPath(r *http.Request) string {
	if original, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok {
		return strings.TrimSuffix(original.URL.EscapedPath(), "/")
	}
	return r.URL.EscapedPath()
}

// idempotencyKey reads the header field of that name; empty where there is none.
func idempotencyKey(header http.Header) (string, error) {
	values := header.Values("Idempotency-Key")
	if len(values) == 0 {
		return "", nil
	}
	key := values[0]
	good := len(values) == 1 && len(key) >= 1 && len(key) <= 255
	for i := range len(key) {
		good = good && key[i] > 0x20 && key[i] < 0x7F
	}
	if !good {
		return "", &issuer.InputError{Field: "Idempotency-Key", Problem: "takes 1 to 255 visible ASCII characters, once"}
	}
	return key, nil
}
