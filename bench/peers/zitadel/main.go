// Command zitadel is the in-memory example server of zitadel/oidc, without its
// pages and its log of each request. It knows the client sid1 by the secret
// verysecret, which it compares as it stands: no hash is needed.
package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	_ "expvar" // for the count of allocations
	"flag"
	"io"
	"log"
	"log/slog"
	"net/http"
	"time"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/zitadel/oidc/v3/example/server/storage"
	"github.com/zitadel/oidc/v3/pkg/op"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:9998", "where to listen")
	token := flag.String("token", "opaque", "what the tokens are: opaque, ES256 or RS256")
	flag.Parse()

	slog.SetDefault(slog.New(slog.NewTextHandler(io.Discard, nil)))
	issuer := "http://" + *listen + "/"
	store := op.Storage(storage.NewStorage(storage.NewUserStore(issuer)))
	if *token != "opaque" {
		key, err := newKey(*token)
		if err != nil {
			log.Fatal(err)
		}
		store = &jwtStorage{store.(*storage.Storage), key}
	}
	provider, err := op.NewProvider(&op.Config{CryptoKey: sha256.Sum256([]byte("test")), AuthMethodPost: true},
		store, op.StaticIssuer(issuer), op.WithAllowInsecure())
	if err != nil {
		log.Fatal(err)
	}
	http.Handle("/", provider)
	server := http.Server{Addr: *listen, ReadHeaderTimeout: time.Minute}
	log.Fatal(server.ListenAndServe())
}

// jwtStorage has the example's storage issue JWTs, by a key of its own.
type jwtStorage struct {
	*storage.Storage
	key signingKey
}

func (s *jwtStorage) SigningKey(context.Context) (op.SigningKey, error) { return s.key, nil }

func (s *jwtStorage) SignatureAlgorithms(context.Context) ([]jose.SignatureAlgorithm, error) {
	return []jose.SignatureAlgorithm{s.key.algorithm}, nil
}

func (s *jwtStorage) ClientCredentials(ctx context.Context, id, secret string) (op.Client, error) {
	client, err := s.Storage.ClientCredentials(ctx, id, secret)
	if err != nil {
		return nil, err
	}
	return jwtClient{client}, nil
}

type jwtClient struct{ op.Client }

func (jwtClient) AccessTokenType() op.AccessTokenType { return op.AccessTokenTypeJWT }

type signingKey struct {
	algorithm jose.SignatureAlgorithm
	private   crypto.Signer
}

func newKey(algorithm string) (key signingKey, err error) {
	key.algorithm = jose.SignatureAlgorithm(algorithm)
	if key.algorithm == jose.ES256 {
		key.private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	} else {
		key.private, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	return key, err
}

func (k signingKey) SignatureAlgorithm() jose.SignatureAlgorithm { return k.algorithm }
func (k signingKey) Key() any                                    { return k.private }
func (signingKey) ID() string                                    { return "key" }
