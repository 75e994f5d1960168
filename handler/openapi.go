package handler

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
)

// openAPI describes the endpoints of a server that does not exist:
// https://api.example.com, with the default base path.
//
//go:embed openapi.json
var openAPI string

// openAPIDocument is what describe has to know of the document. The rest stays
// as it is written, so that readers find its members in an order that tells.
type openAPIDocument struct {
	OpenAPI    string                     `json:"openapi"`
	Info       json.RawMessage            `json:"info"`
	Servers    json.RawMessage            `json:"servers"`
	Tags       json.RawMessage            `json:"tags"`
	Paths      map[string]json.RawMessage `json:"paths"`
	Components json.RawMessage            `json:"components"`
}

// describe returns the OpenAPI document of this server: with its own URLs,
// where the clients reach it, and without what it does not serve.
func (c *ClientCredentials) describe() ([]byte, error) {
	issuer, err := url.Parse(c.app.Policy().Issuer)
	if err != nil {
		return nil, err
	}
	origin := issuer.Scheme + "://" + issuer.Host
	text := strings.NewReplacer(
		"https://api.example.com"+DefaultBasePath, inJSON(c.baseURL()),
		"https://api.example.com", inJSON(origin),
	).Replace(openAPI)
	var document openAPIDocument
	if err := json.Unmarshal([]byte(text), &document); err != nil {
		return nil, fmt.Errorf("the OpenAPI document: %w", err)
	}
	metadata := document.Paths[metadataPath]
	delete(document.Paths, metadataPath)
	document.Paths[metadataPath+strings.TrimSuffix(issuer.EscapedPath(), "/")] = metadata
	if !c.MCPCompat {
		delete(document.Paths, authorizePath)
	}
	return marshal(document), nil
}

// inJSON escapes a text for the inside of a JSON string.
func inJSON(text string) string {
	quoted := marshal(text)
	return string(quoted[1 : len(quoted)-1])
}
