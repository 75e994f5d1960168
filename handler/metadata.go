package handler

import (
	"net/http"
	"net/url"
	"strings"
)

// serverMetadata is the document of RFC 8414 section 2. It has no
// response_types_supported: an array without elements must be left out (section
// 3.2), and this server has no authorization endpoint that would need one.
type serverMetadata struct {
	Issuer          string   `json:"issuer"`
	TokenEndpoint   string   `json:"token_endpoint"`
	KeySet          string   `json:"jwks_uri"`
	Grants          []string `json:"grant_types_supported"`
	TokenClientAuth []string `json:"token_endpoint_auth_methods_supported"`
	TokenAlgorithms []string `json:"token_endpoint_auth_signing_alg_values_supported"`

	IntrospectionEndpoint   string   `json:"introspection_endpoint"`
	IntrospectionClientAuth []string `json:"introspection_endpoint_auth_methods_supported"`
	IntrospectionAlgorithms []string `json:"introspection_endpoint_auth_signing_alg_values_supported"`
	RevocationEndpoint      string   `json:"revocation_endpoint"`
	RevocationClientAuth    []string `json:"revocation_endpoint_auth_methods_supported"`
	RevocationAlgorithms    []string `json:"revocation_endpoint_auth_signing_alg_values_supported"`
	*mcpMetadata
}

// mcpMetadata is what clients of the Model Context Protocol insist on, though
// they use none of it with this grant.
type mcpMetadata struct {
	AuthorizationEndpoint string   `json:"authorization_endpoint"`
	ResponseTypes         []string `json:"response_types_supported"`
	CodeChallengeMethods  []string `json:"code_challenge_methods_supported"`
}

const (
	metadataPath = "/.well-known/oauth-authorization-server"
	keySetPath   = "/oauth/jwks"
)

// clientAuthMethods are the ways of client authentication, by their registered
// names.
var clientAuthMethods = []string{"client_secret_basic", "client_secret_post", "private_key_jwt"}

// assertionAlgorithms are those of client assertions.
var assertionAlgorithms = []string{"ES256", "EdDSA", "Ed25519", "RS256", "PS256"}

// metadata describes the endpoints as they are at the issuer's own host.
func (c *ClientCredentials) metadata() serverMetadata {
	base := c.baseURL()
	m := serverMetadata{
		Issuer:          c.app.Policy().Issuer,
		TokenEndpoint:   base + tokenPath,
		KeySet:          base + keySetPath,
		Grants:          []string{"client_credentials"},
		TokenClientAuth: clientAuthMethods,
		TokenAlgorithms: assertionAlgorithms,

		IntrospectionEndpoint:   base + introspectPath,
		IntrospectionClientAuth: clientAuthMethods,
		IntrospectionAlgorithms: assertionAlgorithms,
		RevocationEndpoint:      base + revokePath,
		RevocationClientAuth:    clientAuthMethods,
		RevocationAlgorithms:    assertionAlgorithms,
	}
	if c.MCPCompat {
		m.mcpMetadata = &mcpMetadata{
			AuthorizationEndpoint: base + authorizePath,
			ResponseTypes:         []string{},
			CodeChallengeMethods:  []string{"S256"},
		}
	}
	return m
}

// baseURL is where the endpoints are, at the issuer's host.
func (c *ClientCredentials) baseURL() string {
	u, err := url.Parse(c.app.Policy().Issuer)
	if err != nil { // the app has checked it
		return c.BasePath
	}
	return u.Scheme + "://" + u.Host + c.BasePath
}

// assertionAudiences are those that a client assertion may name beside the
// issuer.
func (c *ClientCredentials) assertionAudiences() []string {
	if !c.LenientAssertionAudience {
		return nil
	}
	base := c.baseURL()
	return []string{base + tokenPath, base + introspectPath, base + revokePath}
}

// isMetadataPath reports whether the metadata is at this path: the well-known
// one, with the issuer's own path behind it (RFC 8414 section 3.1).
func (c *ClientCredentials) isMetadataPath(path string) bool {
	suffix, ok := strings.CutPrefix(path, metadataPath)
	if !ok {
		return false
	}
	u, err := url.Parse(c.app.Policy().Issuer)
	return err == nil && strings.TrimSuffix(suffix, "/") == strings.TrimSuffix(u.Path, "/")
}

// serveKeySet shows the public keys, RFC 7517.
func (c *ClientCredentials) serveKeySet(w http.ResponseWriter, r *http.Request) {
	iss, err := c.app.Open()
	if err != nil {
		c.fail(w, "reading the keys", err)
		return
	}
	writePublic(w, r, iss.KeySet())
}

// serveAuthorize is the authorization endpoint that no client can use: it is
// there for those that want to know of one. There is nowhere to redirect to.
func (c *ClientCredentials) serveAuthorize(w http.ResponseWriter, r *http.Request) {
	writeTokenError(w, r, http.StatusBadRequest, "unsupported_response_type", "this server issues tokens by the client_credentials grant alone")
}
