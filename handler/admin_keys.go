package handler

import (
	"encoding/json"
	"net/http"

	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// AdminKeysPath is where the admin endpoint has the signing keys, and
// AdminMasterKeyPath where it replaces the master key.
const (
	AdminKeysPath      = AdminPath + "/keys"
	AdminMasterKeyPath = AdminPath + "/master-key"
)

// NewMasterKey is the body that replaces the master key: 32 bytes in base64;
// empty for one that the server makes.
type NewMasterKey struct {
	Key string `json:"key,omitempty"`
}

func (a AdminAPI) serveKeys(w http.ResponseWriter, r *http.Request) error {
	iss, err := a.issuer(r)
	if err != nil {
		return err
	}
	switch r.Method {
	case http.MethodGet:
		keys, err := iss.Keys(r.Context())
		if err != nil {
			return adminError(err)
		}
		a.log(r).Info("signing keys listed")
		writeBody(w, http.StatusOK, "application/json", marshal(keys))
	case http.MethodPost:
		key, made, err := iss.RotateKey(r.Context())
		if err != nil {
			return adminError(err)
		}
		if made {
			iss.Record(r.Context(), a.byCommand(issuer.Change{Action: issuer.SigningKeyCreated, KeyID: key.ID}))
		}
		writeBody(w, http.StatusCreated, "application/json", marshal(key))
	default:
		return adminMethodNotAllowed(w, "GET, POST")
	}
	return nil
}

func (a AdminAPI) serveKey(w http.ResponseWriter, r *http.Request) error {
	iss, err := a.issuer(r)
	if err != nil {
		return err
	}
	if r.Method != http.MethodDelete {
		return adminMethodNotAllowed(w, http.MethodDelete)
	}
	id := r.PathValue("kid")
	if err := iss.RevokeKey(r.Context(), id); err != nil {
		return adminError(err)
	}
	iss.Record(r.Context(), a.byCommand(issuer.Change{Action: issuer.SigningKeyRevoked, KeyID: id}))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (a AdminAPI) serveMasterKey(w http.ResponseWriter, r *http.Request) error {
	app, err := a.app(r)
	if err != nil {
		return err
	}
	if r.Method != http.MethodPost {
		return adminMethodNotAllowed(w, http.MethodPost)
	}
	body, err := readBody(w, r)
	if err != nil {
		return adminError(err)
	}
	var to NewMasterKey
	if json.Unmarshal(body, &to) != nil {
		return adminError(&issuer.InputError{Field: "the body", Problem: "is no object with a key"})
	}
	if err := app.Rewrap(r.Context(), to.Key); err != nil {
		return adminError(err)
	}
	app.Record(r.Context(), a.byCommand(issuer.Change{Action: issuer.MasterKeyReplaced}))
	w.WriteHeader(http.StatusNoContent)
	return nil
}
