// Package clientcredentials is a Caddy plugin that gives machines access to
// APIs: an OAuth 2.0 authorization server for the client credentials grant, and
// the guard in front of the APIs, in one process.
//
// This package registers the plugin's modules, so that importing it, or
// building it in with xcaddy, is all that is needed.
package clientcredentials

import (
	_ "github.com/clientcredentials/caddy-client-credentials/caddyfile"      // directives and global option
	_ "github.com/clientcredentials/caddy-client-credentials/command"        // caddy client-credentials …
	_ "github.com/clientcredentials/caddy-client-credentials/handler"        // endpoints, guard, admin API
	_ "github.com/clientcredentials/caddy-client-credentials/issuer"         // the app
	_ "github.com/clientcredentials/caddy-client-credentials/store/badger"   // the embedded store
	_ "github.com/clientcredentials/caddy-client-credentials/store/postgres" // the store that nodes share
)
