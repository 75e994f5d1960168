// Package caddyfile turns Caddyfile tokens into the configuration of this
// plugin's modules.
package caddyfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/dustin/go-humanize"

	"github.com/clientcredentials/caddy-client-credentials/issuer"
	"github.com/clientcredentials/caddy-client-credentials/store"
)

func init() {
	httpcaddyfile.RegisterGlobalOption(appName, parseOption)
}

const appName = "client_credentials"

// parseOption parses the global option. Syntax:
//
//	client_credentials {
//	    issuer         <url>
//	    store          <engine> [<args...>]
//	    audience       <audience>
//	    token_lifetime <duration>
//	    token_cache    <size>
//	    signing_key    <path>
//	    signing_algorithm ES256 | EdDSA | RS256 | PS256
//	    rotate         <duration>
//	    master_key     <base64>
//	    retention      <duration>
//	    client_jwks_uri public | any | off
//	    credential <client id> {
//	        secret_hash    <hash>
//	        name           <name>
//	        account        <account>
//	        scopes         <scopes...>
//	        audiences      <audiences...>
//	        grantable      <scopes...>
//	        token_lifetime <duration>
//	        tokens_per_hour <number>
//	        requests_per_second <number>
//	    }
//	}
//
// Several blocks are one, but each setting can be given only once. A store that
// nodes share takes a master_key in its block or an earlier one.
func parseOption(d *caddyfile.Dispenser, existing any) (any, error) {
	app := new(issuer.App)
	if earlier, ok := existing.(httpcaddyfile.App); ok {
		if err := json.Unmarshal(earlier.Value, app); err != nil {
			return nil, err
		}
	}
	d.Next() // consume the option's name
	if d.NextArg() {
		return nil, d.ArgErr()
	}
	var shared *caddyfile.Dispenser // at the store
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		var err error
		if d.Val() == "store" {
			shared, err = parseStore(d, app)
		} else {
			err = parseSetting(d, app)
		}
		if err != nil {
			return nil, err
		}
	}
	if app.Issuer == "" {
		return nil, d.Err("issuer is required: add 'issuer https://…', the URL that the clients know this server by")
	}
	if shared != nil && app.MasterKey == "" {
		return nil, shared.WrapErr(issuer.ErrNoMasterKey)
	}
	return httpcaddyfile.App{Name: appName, Value: caddyconfig.JSON(app, nil)}, nil
}

func parseSetting(d *caddyfile.Dispenser, app *issuer.App) error {
	switch name := d.Val(); name {
	case "issuer":
		return parseOnce(d, &app.Issuer, func(url string) error {
			if strings.Contains(url, "{") {
				return nil // a placeholder, which is replaced when the configuration is loaded
			}
			return issuer.ValidateIssuer(url)
		})
	case "audience":
		return parseOnce(d, &app.Audience, nil)
	case "signing_key":
		return parseOnce(d, &app.SigningKey, nil)
	case "signing_algorithm":
		return parseOnce(d, &app.SigningAlgorithm, issuer.ValidateSigningAlgorithm)
	case "rotate":
		return parseDuration(d, &app.Rotate, "90d", issuer.ValidateRotate)
	case "retention":
		return parseDuration(d, &app.Retention, "30d", issuer.ValidateRetention)
	case "master_key":
		return parseOnce(d, &app.MasterKey, nil)
	case "client_jwks_uri":
		return parseOnce(d, &app.ClientJWKSURI, func(hosts string) error {
			if hosts != issuer.JWKSURIPublic && hosts != issuer.JWKSURIAny && hosts != issuer.JWKSURIOff {
				return issuer.ErrJWKSURI
			}
			return nil
		})
	case "token_lifetime":
		return parseDuration(d, &app.TokenLifetime, "1h", issuer.ValidateTokenLifetime)
	case "token_cache":
		return parseAmount(d, &app.TokenCache, func(text string) (int64, error) {
			size, err := humanize.ParseBytes(text)
			if err != nil || size > math.MaxInt64 {
				return 0, errors.New("token_cache is not a size, such as 64MiB")
			}
			return int64(size), issuer.ValidateTokenCache(int64(size))
		})
	case "credential":
		return parseCredential(d, app)
	default:
		return d.Errf("unrecognized subdirective of client_credentials: %s", name)
	}
}

// parseStore returns where the store is, if nodes share it.
func parseStore(d *caddyfile.Dispenser, app *issuer.App) (shared *caddyfile.Dispenser, err error) {
	at := *d
	if app.StoreRaw != nil {
		return nil, d.Err("store is already specified")
	}
	if !d.NextArg() {
		return nil, d.ArgErr()
	}
	engine := d.Val()
	if _, err := caddy.GetModule("client_credentials.stores." + engine); err != nil {
		return nil, d.Errf("there is no store %q in this Caddy; badger and postgres come with the plugin", engine)
	}
	module, err := caddyfile.UnmarshalModule(d, "client_credentials.stores."+engine)
	if err != nil {
		return nil, err
	}
	app.StoreRaw = caddyconfig.JSONModuleObject(module, "module", engine, nil)
	if of, ok := module.(store.Engine); ok && of.Shared() {
		return &at, nil
	}
	return nil, nil
}

func parseDuration(d *caddyfile.Dispenser, target *caddy.Duration, example string, check func(time.Duration) error) error {
	name := d.Val()
	return parseAmount(d, target, func(text string) (caddy.Duration, error) {
		duration, err := caddy.ParseDuration(text)
		if err != nil {
			return 0, fmt.Errorf("%s is not a duration, such as %s: %w", name, example, err)
		}
		return caddy.Duration(duration), check(duration)
	})
}

// parseAmount reads a setting's one value, and what it means.
func parseAmount[T comparable](d *caddyfile.Dispenser, target *T, read func(text string) (T, error)) error {
	var text string
	if *target != *new(T) {
		text = "set"
	}
	return parseOnce(d, &text, func(text string) (err error) {
		*target, err = read(text)
		return err
	})
}

// parseOnce reads a setting's one value.
func parseOnce(d *caddyfile.Dispenser, target *string, check func(string) error) error {
	name := d.Val()
	if *target != "" {
		return d.Errf("%s is already specified", name)
	}
	if !d.AllArgs(target) {
		return d.Errf("%s takes one value", name) // ArgErr would repeat a key
	}
	if *target == "" {
		return d.Errf("%s is empty", name)
	}
	if check != nil {
		if err := check(*target); err != nil {
			return d.WrapErr(err)
		}
	}
	return nil
}
