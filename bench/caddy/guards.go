package main

import (
	"bufio"
	"crypto"
	"net/http"
	"os"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/golang-jwt/jwt/v5"
)

func init() {
	register(Nothing{}, "bench_nothing", func(string) caddyhttp.MiddlewareHandler { return Nothing{} })
	register(VerifyEach{}, "bench_verify_each", func(key string) caddyhttp.MiddlewareHandler { return &VerifyEach{Key: key} })
	register(LookUp{}, "bench_look_up", func(tokens string) caddyhttp.MiddlewareHandler { return &LookUp{Tokens: tokens} })
}

// register makes a handler a directive with at most one argument, in the place
// of bearer_auth.
func register(module caddy.Module, name string, handler func(argument string) caddyhttp.MiddlewareHandler) {
	caddy.RegisterModule(module)
	httpcaddyfile.RegisterHandlerDirective(name, func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		h.Next()
		argument := ""
		h.Args(&argument)
		return handler(argument), nil
	})
	httpcaddyfile.RegisterDirectiveOrder(name, httpcaddyfile.After, "basic_auth")
}

// Nothing lets every request pass: what it costs to have a handler at all.
type Nothing struct{}

// CaddyModule returns the Caddy module information.
func (Nothing) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.bench_nothing", New: func() caddy.Module { return new(Nothing) }}
}

func (Nothing) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	return next.ServeHTTP(w, r)
}

// VerifyEach verifies the token of each request, as a simple plugin does: it
// remembers nothing, and knows of no revocation.
type VerifyEach struct {
	// Key is the PEM file of the key that signs.
	Key string `json:"key"`

	public crypto.PublicKey
	parser *jwt.Parser
}

// CaddyModule returns the Caddy module information.
func (VerifyEach) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.bench_verify_each", New: func() caddy.Module { return new(VerifyEach) }}
}

// Provision reads the key.
func (v *VerifyEach) Provision(caddy.Context) error {
	signer, err := readKey(v.Key)
	if err != nil {
		return err
	}
	v.public = signer.Public()
	v.parser = jwt.NewParser(jwt.WithValidMethods([]string{"ES256"}), jwt.WithExpirationRequired(),
		jwt.WithIssuer(issuerName), jwt.WithAudience(issuerName))
	return nil
}

func (v *VerifyEach) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	text, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return refuse(w)
	}
	var claims struct {
		jwt.RegisteredClaims
		Scope string `json:"scope"`
	}
	_, err := v.parser.ParseWithClaims(text, &claims, func(*jwt.Token) (any, error) { return v.public, nil })
	if err != nil || claims.Scope != scope {
		return refuse(w)
	}
	r.Header.Del("Authorization")
	r.Header.Set("X-Client-Id", claims.Subject)
	return next.ServeHTTP(w, r)
}

func refuse(w http.ResponseWriter) error {
	w.Header().Set("WWW-Authenticate", "Bearer")
	w.WriteHeader(http.StatusUnauthorized)
	return nil
}

// LookUp lets pass whose token is in a map, and does nothing else: no guard
// that knows its tokens can cost less.
type LookUp struct {
	// Tokens is a file with a token on each line.
	Tokens string `json:"tokens"`

	known map[string]struct{}
}

// CaddyModule returns the Caddy module information.
func (LookUp) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.bench_look_up", New: func() caddy.Module { return new(LookUp) }}
}

// Provision reads as many tokens as the benchmark uses.
func (l *LookUp) Provision(caddy.Context) error {
	file, err := os.Open(l.Tokens)
	if err != nil {
		return err
	}
	defer file.Close()
	l.known = make(map[string]struct{})
	lines := bufio.NewScanner(file)
	for len(l.known) < 10_000 && lines.Scan() {
		l.known[lines.Text()] = struct{}{}
	}
	return lines.Err()
}

func (l *LookUp) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	text, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if _, known := l.known[text]; !known {
		return refuse(w)
	}
	return next.ServeHTTP(w, r)
}

// Interface guards
var (
	_ caddyhttp.MiddlewareHandler = Nothing{}
	_ caddy.Provisioner           = (*VerifyEach)(nil)
	_ caddyhttp.MiddlewareHandler = (*VerifyEach)(nil)
	_ caddy.Provisioner           = (*LookUp)(nil)
	_ caddyhttp.MiddlewareHandler = (*LookUp)(nil)
)
