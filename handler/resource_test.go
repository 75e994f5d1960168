package handler_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

const resources = `{
	{{global}}
	client_credentials {
		issuer {{url}}
		store badger {{dir}}/store
	}
}
{{url}} {
	client_credentials
	reverse_proxy {{upstream}}
}
http://stock.localhost:{{port}} {
	@write method POST
	bearer_auth /items/* stock:read {
		audience http://stock.localhost:{{port}}/items
	}
	bearer_auth @write stock:write stock:read {
		audience http://stock.localhost:{{port}}/items
	}
	bearer_auth /orders/* {
		audience urn:orders
	}
	reverse_proxy {{upstream}}
}
`

func TestGuardedSitesDescribeTheirResources(t *testing.T) {
	s := run(t, resources)
	wantDocument(t, document(t, s, "/.well-known/oauth-protected-resource"), s.Expand(`{
		"resource": "{{url}}",
		"authorization_servers": ["{{url}}"],
		"bearer_methods_supported": ["header"]
	}`))
	// Of another host nothing is said, and the path is the upstream's.
	if resp := s.Do(t, "GET", "/.well-known/oauth-protected-resource/items", ""); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a resource of another host: %s", resp.Status)
	}

	stock := *s
	stock.Host = "stock.localhost"
	wantDocument(t, document(t, &stock, "/.well-known/oauth-protected-resource/items"), s.Expand(`{
		"resource": "http://stock.localhost:{{port}}/items",
		"authorization_servers": ["{{url}}"],
		"scopes_supported": ["stock:read", "stock:write"],
		"bearer_methods_supported": ["header"]
	}`))
	for _, path := range []string{"", "/", "/items/", "/items/x", "/orders"} {
		if resp := stock.Do(t, "GET", "/.well-known/oauth-protected-resource"+path, ""); resp.StatusCode != 200 || len(s.Upstream.Take()) != 1 {
			t.Errorf("%q is not left to the upstream: %s", path, resp.Status)
		}
	}
}

func TestAChallengeNamesTheMetadataOfItsResource(t *testing.T) {
	s := run(t, resources)
	stock := *s
	stock.Host = "stock.localhost"
	token := s.Token(t, s.CreateWith(t))
	for _, c := range []struct {
		server *testserver.Server
		path   string
		header []string
		want   string
	}{
		{s, "/x", nil, `401 Bearer realm="{{url}}", resource_metadata="{{url}}/.well-known/oauth-protected-resource"`},
		{s, "/api/v0/client-credentials", nil, `401 Bearer realm="{{url}}", resource_metadata="{{url}}/.well-known/oauth-protected-resource"`},
		{&stock, "/items/1", nil, `401 Bearer realm="{{url}}", resource_metadata="http://stock.localhost:{{port}}/.well-known/oauth-protected-resource/items"`},
		{&stock, "/items/1", testserver.Bearer(token), `401 Bearer realm="{{url}}", error="invalid_token", error_description="[^"]*", resource_metadata="http://stock.localhost:{{port}}/.well-known/oauth-protected-resource/items"`},
		{&stock, "/orders/1", nil, `401 Bearer realm="{{url}}"`},
	} {
		want := strings.ReplaceAll(s.Expand(c.want), ".", `\.`)
		wantRefused(t, s, c.server.Do(t, "GET", c.path, "", c.header...), want)
	}
}
