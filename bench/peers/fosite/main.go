// Command fosite is a token endpoint of ory/fosite on its in-memory example
// store. The client my-client has the secret foobar.
package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	_ "expvar" // for the count of allocations
	"flag"
	"log"
	"net/http"
	"time"

	"github.com/ory/fosite"
	"github.com/ory/fosite/compose"
	"github.com/ory/fosite/handler/oauth2"
	"github.com/ory/fosite/storage"
	"github.com/ory/fosite/token/jwt"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:3846", "where to listen")
	token := flag.String("token", "opaque", "what the tokens are: opaque or ES256")
	hash := flag.String("hash", "bcrypt", "how the secret is kept: bcrypt, as in the example, or sha256")
	flag.Parse()

	config := &fosite.Config{
		GlobalSecret:      bytes.Repeat([]byte("k"), 32),
		AccessTokenIssuer: "http://" + *listen,
	}
	store := storage.NewExampleStore()
	if *hash == "sha256" {
		config.ClientSecretsHasher = digest{}
		client := store.Clients["my-client"].(*fosite.DefaultClient)
		client.Secret, client.RotatedSecrets = digest{}.of([]byte("foobar")), nil
	}
	strategy := oauth2.CoreStrategy(compose.NewOAuth2HMACStrategy(config))
	if *token == "ES256" {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			log.Fatal(err)
		}
		strategy = compose.NewOAuth2JWTStrategy(func(context.Context) (any, error) { return key, nil }, strategy, config)
	}
	provider := compose.Compose(config, store, strategy, compose.OAuth2ClientCredentialsGrantFactory)

	http.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) { serve(provider, w, r) })
	server := http.Server{Addr: *listen, ReadHeaderTimeout: time.Minute}
	log.Fatal(server.ListenAndServe())
}

func serve(provider fosite.OAuth2Provider, w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	session := &oauth2.JWTSession{
		JWTClaims: &jwt.JWTClaims{Subject: "my-client"},
		JWTHeader: &jwt.Headers{},
	}
	request, err := provider.NewAccessRequest(ctx, r, session)
	if err != nil {
		provider.WriteAccessError(ctx, w, request, err)
		return
	}
	response, err := provider.NewAccessResponse(ctx, request)
	if err != nil {
		provider.WriteAccessError(ctx, w, request, err)
		return
	}
	provider.WriteAccessResponse(ctx, w, request, response)
}

// digest keeps secrets as SHA-256: enough for random ones, and the fastest that
// fosite can be given.
type digest struct{}

func (digest) of(secret []byte) []byte {
	sum := sha256.Sum256(secret)
	return sum[:]
}

func (d digest) Hash(_ context.Context, secret []byte) ([]byte, error) { return d.of(secret), nil }

func (d digest) Compare(_ context.Context, hash, secret []byte) error {
	if subtle.ConstantTimeCompare(hash, d.of(secret)) != 1 {
		return errors.New("the secret is wrong")
	}
	return nil
}
