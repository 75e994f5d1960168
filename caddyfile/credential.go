package caddyfile

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// parseCredential parses a credential that the configuration declares. Each
// secret_hash is one more; the other settings are given once.
func parseCredential(d *caddyfile.Dispenser, app *issuer.App) error {
	var declared issuer.DeclaredCredential
	if !d.Args(&declared.ClientID) || d.NextArg() {
		return d.Err("credential takes the client id, and a block")
	}
	for _, other := range app.Credentials {
		if other.ClientID == declared.ClientID {
			return d.Errf("credential %s is already declared", declared.ClientID)
		}
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if err := parseCredentialSetting(d, &declared); err != nil {
			return err
		}
	}
	if !strings.Contains(strings.Join(declared.SecretHashes, ""), "{") { // a placeholder is replaced when the configuration is loaded
		if err := issuer.ValidateDeclared(declared); err != nil {
			return d.WrapErr(err)
		}
	}
	app.Credentials = append(app.Credentials, declared)
	return nil
}

func parseCredentialSetting(d *caddyfile.Dispenser, declared *issuer.DeclaredCredential) error {
	switch name := d.Val(); name {
	case "secret_hash":
		var hash string
		if err := parseOnce(d, &hash, nil); err != nil {
			return err
		}
		declared.SecretHashes = append(declared.SecretHashes, hash)
		return nil
	case "name":
		return parseOnce(d, &declared.Name, nil)
	case "account":
		return parseOnce(d, &declared.Account, nil)
	case "scopes":
		return parseList(d, &declared.Scopes)
	case "audiences":
		return parseList(d, &declared.Audiences)
	case "grantable":
		return parseList(d, &declared.Grantable)
	case "token_lifetime":
		return parseDuration(d, &declared.TokenLifetime, "15m", issuer.ValidateTokenLifetime)
	case "tokens_per_hour":
		return parseNumber(d, &declared.TokensPerHour)
	case "requests_per_second":
		return parseNumber(d, &declared.RequestsPerSecond)
	default:
		return d.Errf("unrecognized subdirective of credential: %s", name)
	}
}

func parseNumber(d *caddyfile.Dispenser, target *int) error {
	name := d.Val()
	return parseAmount(d, target, func(text string) (int, error) {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return 0, fmt.Errorf("%s is not a number from 1 on", name)
		}
		return n, nil
	})
}

func parseList(d *caddyfile.Dispenser, target *[]string) error {
	name := d.Val()
	if *target != nil {
		return d.Errf("%s is already specified", name)
	}
	if *target = d.RemainingArgs(); len(*target) == 0 {
		return d.Errf("%s takes one value or more", name)
	}
	return nil
}
