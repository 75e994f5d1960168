package handler

import (
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/internal/strictjson"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// newSecretDocument is how the API shows a new secret, once.
type newSecretDocument struct {
	ID      string     `json:"id"`
	Secret  string     `json:"secret"`
	Created timestamp  `json:"created"`
	Expires *timestamp `json:"expires"`
}

// secretDocument is how it shows a secret from then on.
type secretDocument struct {
	ID       string     `json:"id"`
	Hint     *string    `json:"hint"`
	Created  timestamp  `json:"created"`
	Expires  *timestamp `json:"expires"`
	LastUsed *timestamp `json:"lastUsed"`
}

func secretDocuments(c *issuer.Credential, use issuer.Use) []secretDocument {
	documents := []secretDocument{}
	for _, s := range c.Secrets(time.Now()) {
		d := secretDocument{ID: s.ID, Created: timestamp(s.Created), Expires: timestampOrNull(s.Expires), LastUsed: timestampOrNull(use.Secret(s.ID))}
		if s.Hint != "" {
			d.Hint = &s.Hint
		}
		documents = append(documents, d)
	}
	return documents
}

func showOnce(s issuer.Secret, secret string) newSecretDocument {
	return newSecretDocument{s.ID, secret, timestamp(s.Created), timestampOrNull(s.Expires)}
}

// serveSecrets is the secrets of a credential: GET lists them, POST adds one.
func (c *ClientCredentials) serveSecrets(w http.ResponseWriter, r *http.Request, clientID string) {
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		if by, ok := c.manager(w, r, issuer.ScopeRead, issuer.ScopeWrite); ok {
			c.listSecrets(w, r, by, clientID)
		}
	case http.MethodPost:
		if by, ok := c.manager(w, r, issuer.ScopeWrite); ok {
			c.addSecret(w, r, by, clientID)
		}
	default:
		methodNotAllowed(w, "GET, HEAD, POST")
	}
}

// serveSecret is one secret: DELETE ends it.
func (c *ClientCredentials) serveSecret(w http.ResponseWriter, r *http.Request, clientID, secretID string) {
	if r.Method != http.MethodDelete {
		methodNotAllowed(w, http.MethodDelete)
		return
	}
	by, ok := c.manager(w, r, issuer.ScopeWrite)
	if !ok {
		return
	}
	iss, err := c.app.Open()
	if err == nil {
		err = iss.DeleteSecret(r.Context(), by.Reach(), clientID, secretID)
	}
	if err != nil {
		c.refuseChange(w, r, "deleting a secret", err)
		return
	}
	iss.Record(r.Context(), changedBy(by, r, issuer.Change{Action: issuer.SecretDeleted, ClientID: clientID, SecretID: secretID}))
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusNoContent)
}

func (c *ClientCredentials) listSecrets(w http.ResponseWriter, r *http.Request, by issuer.Caller, clientID string) {
	iss, err := c.app.Open()
	var credential *issuer.Credential
	if err == nil {
		credential, err = iss.Get(r.Context(), by.Reach(), clientID)
	}
	var use issuer.Use
	if err == nil {
		use, err = iss.LastUse(r.Context(), credential)
	}
	if err != nil {
		c.refuseChange(w, r, "listing secrets", err)
		return
	}
	writeJSON(w, r, http.StatusOK, secretDocuments(credential, use))
}

func (c *ClientCredentials) addSecret(w http.ResponseWriter, r *http.Request, by issuer.Caller, clientID string) {
	body, err := readBody(w, r)
	if name, _ := mediaType(r.Header); err == nil && len(body) > 0 && !isJSON(name) {
		unsupportedMediaType(w)
		return
	}
	var overlap time.Duration
	if err == nil {
		overlap, err = parseRotation(body)
	}
	if err != nil {
		if !badInput(w, err) {
			writeProblem(w, http.StatusBadRequest, err.Error())
		}
		return
	}
	iss, err := c.app.Open()
	var added issuer.Secret
	var secret string
	if err == nil {
		added, secret, err = iss.AddSecretFor(r.Context(), by, clientID, overlap)
	}
	if err != nil {
		c.refuseChange(w, r, "adding a secret", err)
		return
	}
	iss.Record(r.Context(), changedBy(by, r, issuer.Change{Action: issuer.SecretRotated, ClientID: clientID, SecretID: added.ID}))
	w.Header().Set("Location", collectionPath(r)+"/"+added.ID)
	writeJSON(w, r, http.StatusCreated, showOnce(added, secret))
}

// parseRotation reads the body, if there is one, that asks for another secret.
// What it does not know is an error: a leaked secret would live on where overlap
// is misspelt.
func parseRotation(body []byte) (time.Duration, error) {
	if len(body) == 0 {
		return issuer.DefaultOverlap, nil
	}
	members, err := strictjson.Object(body)
	if err != nil {
		return 0, &issuer.InputError{Field: "the body", Problem: "is not one JSON object: " + err.Error()}
	}
	raw := members["overlap"]
	delete(members, "overlap")
	if len(members) > 0 {
		return 0, &issuer.InputError{Field: "the body", Problem: "has another member than overlap"}
	}
	if strictjson.Null(raw) {
		return issuer.DefaultOverlap, nil
	}
	text, _ := strictjson.String(raw)
	overlap, err := caddy.ParseDuration(text)
	if err != nil {
		return 0, &issuer.InputError{Field: "overlap", Problem: `is neither a duration, such as "1h" or "0s", nor null`}
	}
	return overlap, nil
}
