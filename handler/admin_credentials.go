package handler

import (
	"context"
	"net/http"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/internal/strictjson"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// AdminCredentialsPath is where the admin endpoint has the credentials. They have
// a level of their own: a credential of another server may be called "keys".
const AdminCredentialsPath = AdminPath + "/credentials"

// AdminCredential is a credential with all that is known of it, but for its
// secrets.
type AdminCredential struct {
	credentialDocument
	Account   string   `json:"account"`
	Scopes    []string `json:"scopes"`
	Audiences []string `json:"audiences,omitempty"`
	Grantable []string `json:"grantable,omitzero"`
	CreatedBy string   `json:"createdBy,omitempty"`
	Declared  bool     `json:"declared,omitempty"` // by the configuration
	Status    string   `json:"status"`
	// LastUsed is when it last authenticated; nil where it never did, or where that
	// was not asked for.
	LastUsed *timestamp `json:"lastUsed,omitempty"`
}

// AdminList returns credentials in the form of the admin API's list, without the
// times at which they were last used.
func AdminList(credentials []*issuer.Credential) []AdminCredential {
	list := make([]AdminCredential, len(credentials))
	for i, c := range credentials {
		list[i] = adminDocument(c, time.Time{})
	}
	return list
}

// adminList returns the credentials that a query of the API's list finds, all of
// its pages as one; without parameters but the account, those that have not ended.
func adminList(ctx context.Context, iss *issuer.Issuer, text string) ([]AdminCredential, error) {
	query, values, err := parseQuery(text)
	if err != nil {
		return nil, err
	}
	if len(values) == 0 || len(values) == 1 && values.Has("account") {
		return adminListAll(ctx, iss, query.Account)
	}
	list := []AdminCredential{}
	for {
		page, err := iss.Find(ctx, query)
		if err != nil {
			return nil, err
		}
		for _, found := range page.Credentials {
			list = append(list, adminDocument(found.Credential, found.LastUsed))
		}
		if query.Cursor = page.Next; query.Cursor == "" {
			return list, nil
		}
	}
}

func adminListAll(ctx context.Context, iss *issuer.Issuer, account string) ([]AdminCredential, error) {
	credentials, err := iss.List(ctx, account)
	if err != nil {
		return nil, err
	}
	lastUsed, err := iss.LastUses(ctx, credentials)
	if err != nil {
		return nil, err
	}
	list := AdminList(credentials)
	for i := range list {
		list[i].LastUsed = timestampOrNull(lastUsed[i])
	}
	return list, nil
}

func adminDocument(c *issuer.Credential, lastUsed time.Time) AdminCredential {
	d := AdminCredential{
		credentialDocument: document(c),
		Account:            c.Account,
		Scopes:             append([]string{}, c.Scopes...), // [], not null
		Audiences:          c.Audiences,
		Grantable:          c.Grantable,
		CreatedBy:          c.CreatedBy,
		Declared:           c.Declared,
		Status:             c.Status(time.Now()),
		LastUsed:           timestampOrNull(lastUsed),
	}
	d.Keys, d.KeysURL, d.Claims = c.Keys, c.KeysURL, c.Claims
	d.TokensPerHour, d.PerSecond = c.TokensPerHour, c.RequestsPerSecond
	if c.TokenLifetime != 0 {
		d.TokenLifetime = duration(c.TokenLifetime)
	}
	return d
}

// parseAdminDraft reads a body that creates a credential. It returns an
// *issuer.InputError where it is wrong.
func parseAdminDraft(body []byte) (issuer.Draft, error) {
	draft, err := parseDraft(body)
	if err != nil {
		return draft, err
	}
	members, err := strictjson.Object(body)
	if err != nil {
		return draft, err
	}
	for name := range members {
		switch name {
		case "name", "expires", "account", "scopes", "audiences", "grantable", "tokenLifetime", "tokensPerHour", "requestsPerSecond", "claims", "jwks", "jwksUri":
		default:
			return draft, &issuer.InputError{Field: "the body", Problem: "has a member that is not known"}
		}
	}
	draft.Named = nil // the contract's object is what the commands print
	return draft, nil
}

func (a AdminAPI) serveCredentials(w http.ResponseWriter, r *http.Request) error {
	iss, err := a.issuer(r)
	if err != nil {
		return err
	}
	switch r.Method {
	case http.MethodPost:
		return a.create(w, r, iss)
	case http.MethodGet:
		list, err := adminList(r.Context(), iss, r.URL.RawQuery)
		if err != nil {
			return adminError(err)
		}
		a.log(r).Info("credentials listed")
		writeBody(w, http.StatusOK, "application/json", marshal(list))
		return nil
	case http.MethodDelete:
		return a.revokeAll(w, r, iss)
	default:
		return adminMethodNotAllowed(w, "DELETE, GET, POST")
	}
}

func (a AdminAPI) create(w http.ResponseWriter, r *http.Request, iss *issuer.Issuer) error {
	body, err := readBody(w, r)
	if err != nil {
		return adminError(err)
	}
	draft, err := parseAdminDraft(body)
	if err != nil {
		return adminError(err)
	}
	c, secret, err := iss.Create(r.Context(), draft)
	if err != nil {
		return adminError(err)
	}
	iss.Record(r.Context(), a.byCommand(issuer.Change{
		Action: issuer.CredentialCreated, ClientID: c.ClientID, Account: c.Account, Scope: strings.Join(c.Scopes, " "),
	}))
	writeBody(w, http.StatusCreated, "application/json", CreatedDocument(c, secret))
	return nil
}

func (a AdminAPI) revokeAll(w http.ResponseWriter, r *http.Request, iss *issuer.Issuer) error {
	selection, err := parseSelection(r.URL.RawQuery)
	if err != nil {
		return adminError(err)
	}
	revoked, err := iss.RevokeAll(r.Context(), "", selection, "", func(ctx context.Context, one *issuer.Credential) {
		iss.Record(ctx, a.byCommand(issuer.Change{Action: issuer.CredentialRevoked, ClientID: one.ClientID, Account: one.Account}))
	})
	if err != nil {
		return adminError(err)
	}
	writeBody(w, http.StatusOK, "application/json", marshal(revokedDocument{revoked}))
	return nil
}

func (a AdminAPI) serveCredential(w http.ResponseWriter, r *http.Request) error {
	iss, err := a.issuer(r)
	if err != nil {
		return err
	}
	clientID := r.PathValue("clientID")
	switch r.Method {
	case http.MethodGet:
		c, use, err := used(r, iss, clientID)
		if err != nil {
			return adminError(err)
		}
		a.log(r).Info("credential shown", zap.String("client_id", clientID))
		writeBody(w, http.StatusOK, "application/json", marshal(adminDocument(c, use.At)))
	case http.MethodPatch:
		body, err := readBody(w, r)
		if err != nil {
			return adminError(err)
		}
		patch, named, err := parsePatch(body)
		if err != nil {
			return adminError(err)
		}
		c, err := iss.Change(r.Context(), "", clientID, patch)
		if err != nil {
			return adminError(err)
		}
		iss.Record(r.Context(), a.byCommand(issuer.Change{
			Action: issuer.CredentialChanged, ClientID: clientID, Account: c.Account, Members: strings.Join(named, " "),
		}))
		writeBody(w, http.StatusOK, "application/json", marshal(adminDocument(c, time.Time{})))
	case http.MethodDelete:
		if err := iss.Revoke(r.Context(), "", clientID); err != nil {
			return adminError(err)
		}
		iss.Record(r.Context(), a.byCommand(issuer.Change{Action: issuer.CredentialRevoked, ClientID: clientID}))
		w.WriteHeader(http.StatusNoContent)
	default:
		return adminMethodNotAllowed(w, "DELETE, GET, PATCH")
	}
	return nil
}

// used returns a credential, and when it was last used.
func used(r *http.Request, iss *issuer.Issuer, clientID string) (*issuer.Credential, issuer.Use, error) {
	c, err := iss.Get(r.Context(), "", clientID)
	if err != nil {
		return nil, issuer.Use{}, err
	}
	use, err := iss.LastUse(r.Context(), c)
	return c, use, err
}

func (a AdminAPI) serveSecrets(w http.ResponseWriter, r *http.Request) error {
	iss, err := a.issuer(r)
	if err != nil {
		return err
	}
	clientID := r.PathValue("clientID")
	switch r.Method {
	case http.MethodGet:
		c, use, err := used(r, iss, clientID)
		if err != nil {
			return adminError(err)
		}
		a.log(r).Info("secrets listed", zap.String("client_id", clientID))
		writeBody(w, http.StatusOK, "application/json", marshal(secretDocuments(c, use)))
	case http.MethodPost:
		body, err := readBody(w, r)
		if err != nil {
			return adminError(err)
		}
		overlap, err := parseRotation(body)
		if err != nil {
			return adminError(err)
		}
		added, secret, err := iss.AddSecret(r.Context(), "", clientID, overlap)
		if err != nil {
			return adminError(err)
		}
		iss.Record(r.Context(), a.byCommand(issuer.Change{Action: issuer.SecretRotated, ClientID: clientID, SecretID: added.ID}))
		writeBody(w, http.StatusCreated, "application/json", marshal(showOnce(added, secret)))
	default:
		return adminMethodNotAllowed(w, "GET, POST")
	}
	return nil
}

func (a AdminAPI) serveSecret(w http.ResponseWriter, r *http.Request) error {
	iss, err := a.issuer(r)
	if err != nil {
		return err
	}
	if r.Method != http.MethodDelete {
		return adminMethodNotAllowed(w, http.MethodDelete)
	}
	clientID, secretID := r.PathValue("clientID"), r.PathValue("secretID")
	if err := iss.DeleteSecret(r.Context(), "", clientID, secretID); err != nil {
		return adminError(err)
	}
	iss.Record(r.Context(), a.byCommand(issuer.Change{Action: issuer.SecretDeleted, ClientID: clientID, SecretID: secretID}))
	w.WriteHeader(http.StatusNoContent)
	return nil
}
