// Command caddy is a Caddy with the plugin and with the handlers that the
// benchmark compares it to. Its subcommands bench-store and bench-open make a
// store of any size, and time how long one takes to open.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/clientcredentials/caddy-client-credentials"
)

func main() { caddycmd.Main() }
