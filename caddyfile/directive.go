package caddyfile

import (
	"encoding/json"
	"strconv"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/clientcredentials/caddy-client-credentials/handler"
)

func init() {
	httpcaddyfile.RegisterDirective("client_credentials", parseClientCredentials)
	httpcaddyfile.RegisterDirective("bearer_auth", parseBearerAuth)
	// Each is put right behind basic_auth: the last one registered runs first.
	httpcaddyfile.RegisterDirectiveOrder("bearer_auth", httpcaddyfile.After, "basic_auth")
	httpcaddyfile.RegisterDirectiveOrder("client_credentials", httpcaddyfile.After, "basic_auth")
}

// parseClientCredentials parses the directive that serves the endpoints and
// guards what else reaches it. Syntax:
//
//	client_credentials [<matcher>] {
//	    base_path     <path>
//	    auth_failures <per client> <per address> | off
//	    lenient_assertion_audience
//	    mcp_compat
//	    keep_streams
//	}
//
// The matcher narrows what is guarded; the endpoints are served, and identity
// headers removed, without it.
func parseClientCredentials(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	matcher, err := begin(h)
	if err != nil {
		return nil, err
	}
	if h.NextArg() {
		return nil, h.ArgErr()
	}
	endpoints, guard := new(handler.ClientCredentials), &handler.BearerAuth{MatcherSetsRaw: matcher}
	for nesting := h.Nesting(); h.NextBlock(nesting); {
		if err := parseEndpointSetting(h.Dispenser, endpoints, guard); err != nil {
			return nil, err
		}
	}
	return route(h, endpoints, guard), nil
}

func parseEndpointSetting(d *caddyfile.Dispenser, endpoints *handler.ClientCredentials, guard *handler.BearerAuth) (err error) {
	switch d.Val() {
	case "base_path":
		return parseOnce(d, &endpoints.BasePath, handler.ValidateBasePath)
	case "auth_failures":
		if endpoints.AuthFailures != nil {
			return d.Errf("%s is already specified", d.Val())
		}
		endpoints.AuthFailures, err = parseFailureLimit(d)
		return err
	case "lenient_assertion_audience":
		return parseFlag(d, &endpoints.LenientAssertionAudience)
	case "mcp_compat":
		return parseFlag(d, &endpoints.MCPCompat)
	case "keep_streams":
		return parseFlag(d, &guard.KeepStreams)
	default:
		return d.Errf("unrecognized subdirective of client_credentials: %s", d.Val())
	}
}

func parseFailureLimit(d *caddyfile.Dispenser) (*handler.FailureLimit, error) {
	args := d.RemainingArgs()
	if len(args) == 1 && args[0] == "off" {
		return &handler.FailureLimit{Off: true}, nil
	}
	if len(args) != 2 {
		return nil, d.ArgErr()
	}
	var bursts [2]int
	for n, arg := range args {
		var err error
		if bursts[n], err = strconv.Atoi(arg); err != nil || bursts[n] < 1 {
			return nil, d.Errf("auth_failures takes two numbers of failures, such as 50 500, or off; %q is neither", arg)
		}
	}
	return &handler.FailureLimit{PerClient: bursts[0], PerAddress: bursts[1]}, nil
}

// parseBearerAuth parses the directive that guards. Syntax:
//
//	bearer_auth [<matcher>] [<scopes...>] {
//	    any
//	    audience <audience>
//	    realm    <realm>
//	    optional
//	    forward_token
//	    keep_streams
//	    report_only
//	}
func parseBearerAuth(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	matcher, err := begin(h)
	if err != nil {
		return nil, err
	}
	guard := &handler.BearerAuth{MatcherSetsRaw: matcher}
	guard.Scopes = h.RemainingArgs()
	if err := handler.ValidateRules(handler.Rules{Scopes: guard.Scopes}); err != nil {
		return nil, h.WrapErr(err)
	}
	for nesting := h.Nesting(); h.NextBlock(nesting); {
		if err := parseGuardSetting(h.Dispenser, guard); err != nil {
			return nil, err
		}
	}
	if err := handler.ValidateRules(guard.Rules); err != nil {
		return nil, h.WrapErr(err)
	}
	return route(h, guard), nil
}

func parseGuardSetting(d *caddyfile.Dispenser, guard *handler.BearerAuth) error {
	switch d.Val() {
	case "any":
		return parseFlag(d, &guard.Any)
	case "audience":
		return parseOnce(d, &guard.Audience, nil)
	case "realm":
		return parseOnce(d, &guard.Realm, func(realm string) error {
			return handler.ValidateRules(handler.Rules{Realm: realm})
		})
	case "optional":
		return parseFlag(d, &guard.Optional)
	case "forward_token":
		return parseFlag(d, &guard.ForwardToken)
	case "keep_streams":
		return parseFlag(d, &guard.KeepStreams)
	case "report_only":
		return parseFlag(d, &guard.ReportOnly)
	default:
		return d.Errf("unrecognized subdirective of bearer_auth: %s", d.Val())
	}
}

func parseFlag(d *caddyfile.Dispenser, flag *bool) error {
	if *flag {
		return d.Errf("%s is already specified", d.Val())
	}
	if d.NextArg() {
		return d.ArgErr()
	}
	*flag = true
	return nil
}

// begin consumes the directive's name and matcher.
func begin(h httpcaddyfile.Helper) (caddyhttp.RawMatcherSets, error) {
	h.Next()
	matcher, err := h.ExtractMatcherSet()
	if err != nil {
		return nil, err
	}
	h.Next() // ExtractMatcherSet goes back to the beginning
	if h.Option(appName) == nil {
		return nil, h.Errf("%s needs the global option 'client_credentials { issuer https://… }' at the top of the Caddyfile", h.Val())
	}
	if matcher == nil {
		return nil, nil
	}
	return caddyhttp.RawMatcherSets{matcher}, nil
}

// route returns what a directive becomes: one route that every request takes, so
// that a matcher narrows what is guarded, and neither what is served nor what is
// cleaned; the guard holds the matcher itself. The handlers then share a route
// with those of the directives around them, which Caddy wires up once.
func route(h httpcaddyfile.Helper, handlers ...caddyhttp.MiddlewareHandler) []httpcaddyfile.ConfigValue {
	var route caddyhttp.Route
	if h.IsNamedRoute() {
		// Of a named route in which nothing has a matcher, Caddy keeps the first
		// handler alone, and would lose what is guarded.
		route.MatcherSetsRaw = caddyhttp.RawMatcherSets{{"path": caddyconfig.JSON(caddyhttp.MatchPath{"*"}, nil)}}
	}
	for _, handler := range handlers {
		route.HandlersRaw = append(route.HandlersRaw, handlerJSON(handler))
	}
	return []httpcaddyfile.ConfigValue{{Class: "route", Value: route}}
}

func handlerJSON(handler caddyhttp.MiddlewareHandler) json.RawMessage {
	id := caddy.ModuleID(caddy.GetModuleID(handler))
	return caddyconfig.JSONModuleObject(handler, "handler", id.Name(), nil)
}
