package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/internal/bytecache"
	"github.com/clientcredentials/caddy-client-credentials/internal/fetch"
	"github.com/clientcredentials/caddy-client-credentials/store"
)

func init() {
	caddy.RegisterModule(new(App)) // not a value: it holds locks
}

// App is the authorization server for machine clients: it keeps their
// credentials, and signs and verifies the tokens that it issues for them. All
// sites of the server share it; the handlers `client_credentials` and
// `bearer_auth` are its doors.
//
// Its logger `audit` has a line for each change. It emits events for these too,
// such as `credential_created`, and `credential_expiring`, `credential_expired`
// and `brute_force_suspected`.
type App struct {
	// The issuer identifier (RFC 8414): the `iss` claim of every token, an
	// https URL without query and fragment. Plain http is accepted for loopback
	// hosts only. Required. Placeholders are replaced.
	Issuer string `json:"issuer,omitempty"`

	// The `aud` claim of the tokens, which the guards ask for.
	// Placeholders are replaced. Default: the issuer.
	Audience string `json:"audience,omitempty"`

	// How long a token lives, in whole seconds; never longer than its
	// credential. Default: `1h`
	TokenLifetime caddy.Duration `json:"token_lifetime,omitempty"`

	// How much memory the tokens may take that need no check of their signature
	// any more, in bytes: those that this server has issued, or checked, lately.
	// A token takes about 800 bytes. Beside it, half as much may be taken by
	// credentials that need not be read from the store, as they have asked for
	// tokens lately. On Linux, this lies outside Go's heap (`GOMEMLIMIT` does not
	// count it), but for an index of some 16 bytes each, and is taken from the
	// system as it is used. At least 1 MiB, and less than 64 GiB. After a reload with
	// another size, the memory starts empty. Default: 67108864 (64 MiB)
	TokenCache int64 `json:"token_cache,omitempty"`

	// The path of the PEM file (PKCS#8 or SEC 1) with the private key that
	// signs the tokens. The algorithm follows the key: ES256 for P-256, ES384 for
	// P-384, ES512 for P-521, EdDSA for Ed25519, RS256 for RSA. When it is
	// replaced, the tokens that the old one signed stay valid until they expire.
	// Placeholders are replaced.
	// Default: a key that is made on first start and kept, sealed, in the store.
	SigningKey string `json:"signing_key,omitempty"`

	// The algorithm of the key that the server makes where `signing_key` brings
	// none: `ES256`, `EdDSA`, `RS256` or `PS256`. After a change, a key for the
	// new one is published, and signs 10 minutes later. Default: `ES256`
	SigningAlgorithm string `json:"signing_algorithm,omitempty"`

	// How long a key signs that the server has made, at least 1h. The one that
	// follows is published 10 minutes before it signs, and a key that signs no
	// more still verifies until its last token has expired. Default: until
	// `caddy client-credentials rotate-key` replaces it.
	Rotate caddy.Duration `json:"rotate,omitempty"`

	// The key that seals what the store must not hold in the clear: 32 bytes in
	// base64, best as a placeholder such as `{env.MASTER_KEY}` or
	// `{file./run/secrets/master_key}`. Default: a key that is made on first
	// start and kept in Caddy's storage as `keys/client_credentials_master.key`;
	// required where nodes share the store.
	MasterKey string `json:"master_key,omitempty"`

	// From where a client's key set may be fetched, if its credential names it by
	// a URL: `public` for hosts with public addresses, `any` for private ones and
	// this host too, `off` for none. Who may create credentials has this server
	// send a request to such a URL. Default: `public`
	ClientJWKSURI string `json:"client_jwks_uri,omitempty"`

	// How long a credential is kept that was revoked, or has expired, after its
	// last token has expired. At least 1h.
	// Default: `30d`
	Retention caddy.Duration `json:"retention,omitempty"`

	// Credentials that are kept in the configuration. Default: none
	Credentials []DeclaredCredential `json:"credentials,omitempty"`

	// Where the credentials are kept. Default: `badger`
	StoreRaw json.RawMessage `json:"store,omitempty" caddy:"namespace=client_credentials.stores inline_key=module"`

	policy  Policy
	keys    keyPolicy // its master key is zero where that is in Caddy's storage
	engine  store.Engine
	storage certmagic.Storage
	fetcher *fetch.Fetcher // nil: no key set is fetched
	audit   *zap.Logger
	ctx     caddy.Context
	events  *caddyevents.App

	declared  []DeclaredCredential // Credentials, with placeholders replaced
	resources []Resource           // of this configuration's guards; complete once it is provisioned

	issuer  atomic.Pointer[Issuer]
	opening sync.Mutex
	held    bool        // the store, in the pool; guarded by opening
	over    bool        // Cleanup has run; guarded by opening
	stopped atomic.Bool // another configuration takes over, or none does
	keeper  sync.WaitGroup
	stop    context.CancelFunc // of the keeper
}

// The values of App.ClientJWKSURI.
const (
	JWKSURIPublic = "public"
	JWKSURIAny    = "any"
	JWKSURIOff    = "off"
)

// ErrJWKSURI says that App.ClientJWKSURI is none of its values.
var ErrJWKSURI = errors.New("client_jwks_uri is public, any or off")

// ErrNoMasterKey says that App.MasterKey is missing, where nodes share the store.
var ErrNoMasterKey = errors.New("the nodes that share a store need the same master_key: add 'master_key {env.MASTER_KEY}', made by 'openssl rand -base64 32'")

// DefaultTokenCache is how much memory tokens take, in bytes, where nothing is
// configured.
const DefaultTokenCache = 64 << 20

// DefaultTokenLifetime is how long a token lives where nothing is configured.
const DefaultTokenLifetime = time.Hour

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{
		ID:  "client_credentials",
		New: func() caddy.Module { return new(App) },
	}
}

// Provision checks the configuration. It opens nothing and writes nothing:
// `caddy validate` must work beside a running server and leave no trace.
func (a *App) Provision(ctx caddy.Context) error {
	a.storage = ctx.Storage()
	a.audit = ctx.Logger().Named("audit")
	if err := a.registerMetrics(ctx.GetMetricsRegistry()); err != nil {
		return err
	}
	if err := a.provisionEvents(ctx); err != nil {
		return err
	}
	if err := a.provisionPolicy(); err != nil {
		return err
	}
	if err := a.provisionDeclared(); err != nil {
		return err
	}
	if err := a.provisionKeys(); err != nil {
		return err
	}
	if a.TokenCache == 0 {
		a.TokenCache = DefaultTokenCache
	}
	if err := ValidateTokenCache(a.TokenCache); err != nil {
		return err
	}
	if a.Retention == 0 {
		a.Retention = caddy.Duration(DefaultRetention)
	}
	if err := ValidateRetention(time.Duration(a.Retention)); err != nil {
		return err
	}
	switch a.ClientJWKSURI {
	case "", JWKSURIPublic, JWKSURIAny:
		a.fetcher = fetch.New(a.ClientJWKSURI == JWKSURIAny)
	case JWKSURIOff:
	default:
		return ErrJWKSURI
	}
	if a.StoreRaw == nil {
		a.StoreRaw = json.RawMessage(`{"module":"badger"}`)
	}
	engine, err := ctx.LoadModule(a, "StoreRaw")
	if err != nil {
		return fmt.Errorf("loading the store module: %w", err)
	}
	a.engine = engine.(store.Engine)
	if a.engine.Shared() && a.MasterKey == "" {
		return ErrNoMasterKey
	}
	return nil
}

// Start opens the store, and has it hold what is declared. An error leaves the
// configuration that ran before running.
func (a *App) Start() error {
	iss, err := a.Open()
	if err != nil {
		return err
	}
	return iss.declare(context.Background(), a.declared)
}

// Stop leaves the store open: requests of this configuration may still be under
// way. The last one waits for handlers of events.
func (a *App) Stop() error {
	a.stopped.Store(true)
	if iss := a.issuer.Load(); iss != nil && iss.registry.speaker() == a { // no other takes over
		iss.registry.flush()
	}
	return nil
}

// Cleanup gives up this configuration's hold on the store. The store closes
// when no other configuration holds it.
func (a *App) Cleanup() error {
	a.opening.Lock()
	defer a.opening.Unlock()
	a.over = true
	if !a.held {
		return nil
	}
	a.held = false
	a.stop()
	a.keeper.Wait()
	registry := a.issuer.Load().registry
	registry.letGo(a)
	if left := registry.lastHolder(); left != nil {
		left.declareAgain()
	}
	_, err := stores.Delete(a.engine.Identity())
	return err
}

// declareAgain has the store hold what this configuration declares, where another
// one has failed that has declared something else.
func (a *App) declareAgain() {
	err := a.issuer.Load().declare(context.Background(), a.declared)
	if err != nil {
		caddy.Log().Named("client_credentials").Error("going back to the credentials that were declared before", zap.Error(err))
	}
}

// Open returns the issuer. The first call, of Start or of a request (Caddy
// starts its apps in no order), opens the store and the keys.
func (a *App) Open() (*Issuer, error) {
	if iss := a.issuer.Load(); iss != nil {
		return iss, nil
	}
	a.opening.Lock()
	defer a.opening.Unlock()
	if iss := a.issuer.Load(); iss != nil {
		return iss, nil
	}
	if a.over {
		return nil, store.ErrClosed
	}
	ctx := context.Background()
	shared, err := acquire(ctx, a.engine)
	if err != nil {
		return nil, err
	}
	shared.registry.join(a)
	iss, err := a.openIssuer(ctx, shared)
	if err != nil {
		shared.registry.letGo(a)
		_, _ = stores.Delete(a.engine.Identity())
		return nil, err
	}
	a.held = true
	a.issuer.Store(iss) // before others can find this configuration among the holders
	shared.registry.hold(a)
	ctx, a.stop = context.WithCancel(ctx)
	a.keeper.Go(func() { iss.keepKeys(ctx) })
	return iss, nil
}

func (a *App) openIssuer(ctx context.Context, shared *sharedStore) (*Issuer, error) {
	keys := a.keys
	if keys.master.aead == nil {
		with, err := sealedBy(ctx, shared.Store)
		if err != nil {
			return nil, err
		}
		if keys.master, err = storedMasterKey(ctx, a.storage, with); err != nil {
			return nil, err
		}
	}
	return openIssuer(ctx, a.policy, shared.registry, keys, a.fetcher)
}

func (a *App) provisionPolicy() error {
	repl := caddy.NewReplacer()
	issuer, err := repl.ReplaceOrErr(a.Issuer, true, true)
	if err != nil {
		return fmt.Errorf("issuer: %w", err)
	}
	if err := ValidateIssuer(issuer); err != nil {
		return err
	}
	audience := issuer
	if a.Audience != "" {
		if audience, err = repl.ReplaceOrErr(a.Audience, true, true); err != nil {
			return fmt.Errorf("audience: %w", err)
		}
		if !ValidAudience(audience) {
			return errors.New("audience takes visible ASCII characters, without spaces and fragment")
		}
	}
	lifetime := time.Duration(a.TokenLifetime)
	if lifetime == 0 {
		lifetime = DefaultTokenLifetime
	}
	if err := ValidateTokenLifetime(lifetime); err != nil {
		return err
	}
	a.policy = Policy{Issuer: issuer, Audience: audience, TokenLifetime: lifetime}
	return nil
}

func (a *App) provisionKeys() error {
	if a.SigningKey != "" {
		path, err := caddy.NewReplacer().ReplaceOrErr(a.SigningKey, true, true)
		if err != nil {
			return fmt.Errorf("signing_key: %w", err)
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("signing_key: %w", err)
		}
		key, err := parseSigningKey(text)
		if err != nil {
			return fmt.Errorf("signing_key: %s %w", path, err)
		}
		a.keys.given = &key
		if a.SigningAlgorithm != "" || a.Rotate != 0 {
			return errors.New("signing_algorithm and rotate are for keys that the server makes: leave them out, or signing_key")
		}
	}
	a.keys.algorithm, a.keys.rotate = a.SigningAlgorithm, time.Duration(a.Rotate)
	if a.keys.algorithm == "" {
		a.keys.algorithm = "ES256"
	}
	if err := ValidateSigningAlgorithm(a.keys.algorithm); err != nil {
		return err
	}
	if a.Rotate != 0 {
		if err := ValidateRotate(a.keys.rotate); err != nil {
			return err
		}
	}
	if a.MasterKey != "" {
		text, err := caddy.NewReplacer().ReplaceOrErr(a.MasterKey, true, true)
		if err != nil {
			return fmt.Errorf("master_key: %w", err)
		}
		if a.keys.master, err = parseMasterKey(text); err != nil {
			return fmt.Errorf("master_key %w", err)
		}
	}
	return nil
}

// Policy returns what the configuration says of the tokens.
func (a *App) Policy() Policy { return a.policy }

// Resource is a protected resource: an audience, and the scopes that guards ask
// for in front of it.
type Resource struct {
	Audience string
	Scopes   []string
}

// Protect notes what a guard asks for, so that it can be published. It may be
// called while the configuration is provisioned, and not later.
func (a *App) Protect(audience string, scopes []string) {
	n := slices.IndexFunc(a.resources, func(r Resource) bool { return r.Audience == audience })
	if n < 0 {
		n = len(a.resources)
		a.resources = append(a.resources, Resource{Audience: audience})
	}
	for _, scope := range scopes {
		if !slices.Contains(a.resources[n].Scopes, scope) {
			a.resources[n].Scopes = append(a.resources[n].Scopes, scope)
		}
	}
}

// Resources returns what the guards of this configuration protect.
func (a *App) Resources() []Resource { return a.resources }

// ValidateIssuer checks an issuer identifier by RFC 8414 section 2.
func ValidateIssuer(issuer string) error {
	if issuer == "" {
		return errors.New("issuer is required: set it to the https URL that the clients know this server by")
	}
	u, err := url.Parse(issuer)
	switch {
	case err != nil || u.Host == "" || u.Opaque != "" || u.User != nil:
		return errors.New("issuer is not an absolute URL, such as https://api.example.com")
	case strings.ContainsAny(issuer, "?#"):
		return errors.New("issuer must have no query and no fragment (RFC 8414 section 2)")
	case u.String() != issuer:
		return errors.New("issuer has a character that a URL must write as %XX")
	case u.Scheme == "https", u.Scheme == "http" && loopback(u.Hostname()):
		return nil
	}
	return errors.New("issuer must be an https URL; http is for localhost and loopback addresses only")
}

// ValidateTokenLifetime checks that a lifetime can be told in seconds.
func ValidateTokenLifetime(d time.Duration) error {
	if d < time.Second || d%time.Second != 0 {
		return errors.New("token_lifetime must be a whole number of seconds, and at least 1s")
	}
	return nil
}

// ValidateSigningAlgorithm checks that the server can make keys for it.
func ValidateSigningAlgorithm(algorithm string) error {
	if signingAlgorithms[algorithm] == nil {
		return errors.New("signing_algorithm is ES256, EdDSA, RS256 or PS256")
	}
	return nil
}

// ValidateRotate checks how long a key shall sign.
func ValidateRotate(d time.Duration) error {
	if d < time.Hour {
		return errors.New("rotate must be at least 1h: a key is published for 10 minutes before it signs")
	}
	return nil
}

// ValidateRetention checks how long credentials that have ended are kept.
func ValidateRetention(d time.Duration) error {
	if d < time.Hour {
		return errors.New("retention must be at least 1h")
	}
	return nil
}

// ValidateTokenCache checks that the cache has room for the largest token, and that
// there can be as much memory.
func ValidateTokenCache(bytes int64) error {
	if bytes < 1<<20 || bytes > bytecache.MaxSize {
		return errors.New("token_cache must be at least 1MiB, and less than 64GiB")
	}
	return nil
}

func loopback(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
