package main

import (
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	register(TokenLimit{}, "bench_token", func(key string) caddyhttp.MiddlewareHandler { return &TokenLimit{Key: key} })
}

// TokenLimit is a token endpoint that does what none can do without: it reads
// the form, makes and compares one hash, signs one token and writes the JSON.
// It knows any client by the same secret and keeps nothing.
type TokenLimit struct {
	// Key is the PEM file of the P-256 key that signs.
	Key string `json:"key"`

	signer *ecdsa.PrivateKey
}

// CaddyModule returns the Caddy module information.
func (TokenLimit) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.bench_token", New: func() caddy.Module { return new(TokenLimit) }}
}

// Provision reads the key.
func (t *TokenLimit) Provision(caddy.Context) error {
	key, err := readKey(t.Key)
	if err != nil {
		return err
	}
	t.signer = key.(*ecdsa.PrivateKey) // the benchmark's own
	return nil
}

type claims struct {
	Issuer   string `json:"iss"`
	Audience string `json:"aud"`
	Subject  string `json:"sub"`
	ClientID string `json:"client_id"`
	Scope    string `json:"scope"`
	IssuedAt int64  `json:"iat"`
	Expires  int64  `json:"exp"`
	ID       string `json:"jti"`
}

var (
	encode = base64.RawURLEncoding.EncodeToString
	header = encode([]byte(`{"alg":"ES256","kid":"limit","typ":"at+jwt"}`))
	pepper = []byte("a pepper of the benchmark's own ")
	stored = mac("limit", "limit")
)

func mac(id, secret string) []byte {
	h := hmac.New(sha256.New, pepper)
	h.Write([]byte(id + ":" + secret))
	return h.Sum(nil)
}

func (t *TokenLimit) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	id := r.PostFormValue("client_id")
	if r.PostFormValue("grant_type") != "client_credentials" || !hmac.Equal(mac(id, r.PostFormValue("client_secret")), stored) {
		return refuse(w)
	}
	jti := make([]byte, 16)
	_, _ = rand.Read(jti) // never fails
	now := time.Now().Unix()
	payload, err := json.Marshal(claims{issuerName, issuerName, id, id, scope, now, now + 3600, encode(jti)})
	if err != nil {
		return err
	}
	signed := header + "." + encode(payload)
	digest := sha256.Sum256([]byte(signed))
	a, b, err := ecdsa.Sign(rand.Reader, t.signer, digest[:])
	if err != nil {
		return err
	}
	signature := make([]byte, 64)
	a.FillBytes(signature[:32])
	b.FillBytes(signature[32:])
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	return json.NewEncoder(w).Encode(map[string]any{
		"access_token": signed + "." + encode(signature), "token_type": "Bearer", "expires_in": 3600, "scope": scope,
	})
}

// Interface guards
var (
	_ caddy.Provisioner           = (*TokenLimit)(nil)
	_ caddyhttp.MiddlewareHandler = (*TokenLimit)(nil)
)
