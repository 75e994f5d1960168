package handler_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

// description is the OpenAPI document, and which of its responses were seen.
type description struct {
	root     map[string]any
	compiler *jsonschema.Compiler

	mu      sync.Mutex
	schemas map[string]*jsonschema.Schema // by their place
	seen    map[string]bool               // by operation and status
}

var readDescription = sync.OnceValues(func() (*description, error) {
	text, err := os.ReadFile("openapi.json")
	if err != nil {
		return nil, err
	}
	root, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020) // as OpenAPI 3.1 has it
	compiler.AssertFormat()
	return &description{
		root: root.(map[string]any), compiler: compiler,
		schemas: make(map[string]*jsonschema.Schema), seen: make(map[string]bool),
	}, compiler.AddResource("openapi.json", root)
})

func described(t testing.TB) *description {
	t.Helper()
	d, err := readDescription()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

var (
	escapePointer   = strings.NewReplacer("~", "~0", "/", "~1")
	unescapePointer = strings.NewReplacer("~1", "/", "~0", "~")
)

// at follows names from a place in the document, and references on the way. It
// returns where it arrives, and nil where there is no such place.
func (d *description) at(place string, names ...string) (string, map[string]any) {
	for _, name := range names {
		place += "/" + escapePointer.Replace(name)
	}
	node := d.root
	for _, name := range strings.Split(place, "/")[1:] {
		next, ok := node[unescapePointer.Replace(name)].(map[string]any)
		if !ok {
			return "", nil
		}
		node = next
	}
	if ref, ok := node["$ref"].(string); ok {
		return d.at(strings.TrimPrefix(ref, "#"))
	}
	return place, node
}

func (d *description) schema(t testing.TB, place string) *jsonschema.Schema {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.schemas[place] == nil {
		schema, err := d.compiler.Compile("openapi.json#" + place)
		if err != nil {
			t.Fatal(err)
		}
		d.schemas[place] = schema
	}
	return d.schemas[place]
}

// pathItem returns the path of the document that a request's path fits.
func (d *description) pathItem(path string) (string, map[string]any) {
	name := strings.TrimPrefix(path, "/api/v0")
	if name == path && !strings.HasPrefix(path, "/.well-known/") {
		return "", nil
	}
	if _, item := d.at("/paths", name); item != nil {
		return name, item
	}
	paths, _ := d.root["paths"].(map[string]any)
	best := ""
	for template := range paths {
		if fits(template, name) && len(template) > len(best) {
			best = template
		}
	}
	item, _ := paths[best].(map[string]any)
	return best, item
}

// fits reports whether a path is one of a template with parameters. The last of
// them takes all the rest: what is no such path, the server tells.
func fits(template, path string) bool {
	text, rest, parameter := strings.Cut(template, "{")
	path, fit := strings.CutPrefix(path, text)
	if !fit || !parameter {
		return fit && path == ""
	}
	if _, template, _ = strings.Cut(rest, "}"); template == "" {
		return true
	}
	segment, _, _ := strings.Cut(path, "/")
	return fits(template, path[len(segment):])
}

var methods = []string{"get", "post", "put", "patch", "delete"}

// operations returns those that a request's method names. One that is not there
// stands for all others: each describes what it is answered.
func operations(item map[string]any, method string) (all []string) {
	method = strings.ToLower(method)
	if method == "head" {
		method = "get"
	}
	if item[method] != nil {
		return []string{method}
	}
	return slices.DeleteFunc(slices.Clone(methods), func(m string) bool { return item[m] == nil })
}

// check holds an answer of an endpoint against the document.
func (d *description) check(t testing.TB, resp *http.Response) {
	t.Helper()
	path, item := d.pathItem(resp.Request.URL.Path)
	if item == nil || resp.Header.Get("Via") != "" { // which Caddy sets on the upstream's answers
		return
	}
	status := fmt.Sprint(resp.StatusCode)
	for _, method := range operations(item, resp.Request.Method) {
		place, response := d.at("/paths", path, method, "responses", status)
		if response == nil && resp.StatusCode == http.StatusUnauthorized && resp.Header.Get("Content-Type") == "" {
			return // by the guard: the path is not served here
		}
		operation := strings.ToUpper(method) + " " + path + " " + status
		if response == nil {
			t.Errorf("the OpenAPI document has no %s", operation)
			return
		}
		d.mu.Lock()
		d.seen[operation] = true
		d.mu.Unlock()
		for _, err := range append(d.checkHeader(t, place, resp.Header), d.checkBody(t, place, response, resp)...) {
			t.Errorf("an answer is not as the OpenAPI document has it: %s: %v", operation, err)
		}
	}
}

// ofHTTP are header fields that OpenAPI leaves to HTTP.
var ofHTTP = []string{"Content-Type", "Content-Length", "Date", "Server", "Connection"}

func (d *description) checkHeader(t testing.TB, place string, header http.Header) (wrong []error) {
	t.Helper()
	_, described := d.at(place, "headers")
	for name := range header {
		if described[name] == nil && described[canonical[name]] == nil && !slices.Contains(ofHTTP, name) {
			wrong = append(wrong, fmt.Errorf("it has the header field %s", name))
		}
	}
	for name := range described {
		fieldPlace, field := d.at(place, "headers", name)
		value := strings.Join(header.Values(name), ", ")
		if value == "" {
			if field["required"] == true {
				wrong = append(wrong, fmt.Errorf("it lacks the header field %s", name))
			}
			continue
		}
		var instance any = value
		if _, schema := d.at(fieldPlace, "schema"); schema["type"] == "integer" {
			instance = json.Number(value)
		}
		if err := d.schema(t, fieldPlace+"/schema").Validate(instance); err != nil {
			wrong = append(wrong, fmt.Errorf("the header field %s: %w", name, err))
		}
	}
	return wrong
}

// canonical has the names that Go and their RFCs write in different ways.
var canonical = map[string]string{"Www-Authenticate": "WWW-Authenticate", "Etag": "ETag", "Ratelimit": "RateLimit", "Ratelimit-Policy": "RateLimit-Policy"}

func (d *description) checkBody(t testing.TB, place string, response map[string]any, resp *http.Response) []error {
	t.Helper()
	body := testserver.Body(t, resp)
	resp.Body = io.NopCloser(strings.NewReader(body))
	if response["content"] == nil {
		if body != "" {
			return []error{errors.New("it has a body")}
		}
		return nil
	}
	mediaType, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return []error{err}
	}
	contentPlace, content := d.at(place, "content", mediaType)
	if content == nil {
		return []error{fmt.Errorf("it is of the type %s", mediaType)}
	}
	if resp.Request.Method == http.MethodHead {
		return nil
	}
	instance, err := jsonschema.UnmarshalJSON(strings.NewReader(body))
	if err == nil {
		err = d.schema(t, contentPlace+"/schema").Validate(instance)
	}
	if err != nil {
		return []error{fmt.Errorf("the body %s: %w", body, err)}
	}
	return nil
}

const soundStore = "The store of these tests does not fail."

// unseen says which answers no test of this package gets, and why.
var unseen = map[string]string{
	"POST /oauth/introspect 503":                soundStore,
	"POST /oauth/revoke 503":                    soundStore,
	"GET /oauth/jwks 503":                       soundStore,
	"GET /client-credentials 503":               soundStore,
	"POST /client-credentials 503":              soundStore,
	"DELETE /client-credentials 503":            soundStore,
	"DELETE /client-credentials/{clientId} 503": soundStore,
	"GET /client-credentials/{clientId} 503":    soundStore,
	"PATCH /client-credentials/{clientId} 503":  soundStore,

	"GET /client-credentials/{clientId}/secrets 503":               soundStore,
	"POST /client-credentials/{clientId}/secrets 503":              soundStore,
	"DELETE /client-credentials/{clientId}/secrets/{secretId} 503": soundStore,
	"POST /client-credentials/{clientId}/secrets 507":              "TestAServerOnAFullDiskGoesOnServing gets it, of a server on a volume of its own.",
	"PATCH /client-credentials/{clientId} 507":                     "TestAServerOnAFullDiskGoesOnServing gets it, of a server on a volume of its own.",
	"POST /client-credentials 507":                                 "TestAServerOnAFullDiskGoesOnServing gets it, of a server on a volume of its own.",
}

// allDescribedIsSeen returns an error where the document has answers that no
// test got, if all tests ran.
func allDescribedIsSeen() error {
	for _, name := range []string{"test.run", "test.skip", "test.list", "test.fuzz"} {
		if f := flag.Lookup(name); f != nil && f.Value.String() != "" {
			return nil
		}
	}
	d, err := readDescription()
	if err != nil {
		return err
	}
	var missing []string
	for path, item := range d.root["paths"].(map[string]any) {
		for _, method := range operations(item.(map[string]any), "") {
			_, responses := d.at("/paths", path, method, "responses")
			for status := range responses {
				operation := strings.ToUpper(method) + " " + path + " " + status
				if !d.seen[operation] && unseen[operation] == "" {
					missing = append(missing, operation)
				}
			}
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return fmt.Errorf("no test got what the OpenAPI document has:\n\t%s", strings.Join(missing, "\n\t"))
	}
	return nil
}

func TestTheOpenAPIDocumentIsOfTheServerThatShowsIt(t *testing.T) {
	static := described(t).root
	for name, c := range map[string]struct{ issuerPath, options, base, metadata string }{
		"by default":      {"", "", "/api/v0", "/.well-known/oauth-authorization-server"},
		"with all set":    {"/tenants/a", "base_path /machines/\nmcp_compat", "/machines", "/.well-known/oauth-authorization-server/tenants/a"},
		"with bare paths": {"/", "base_path /", "", "/.well-known/oauth-authorization-server"},
		"with odd paths":  {"/%C3%A9", "base_path `/a\"b`", `/a"b`, "/.well-known/oauth-authorization-server/%C3%A9"},
	} {
		t.Run(name, func(t *testing.T) {
			caddyfile := site("", "", "client_credentials {\n"+c.options+"\n}\nreverse_proxy {{upstream}}")
			s := run(t, strings.Replace(caddyfile, "issuer {{url}}", "issuer {{url}}"+c.issuerPath, 1))
			served := document(t, s, strings.ReplaceAll(c.base, `"`, "%22")+"/openapi.json")

			wantURL(t, served, s.URL(c.base), "servers", 0, "url")
			wantURL(t, served, s.URL(""), "paths", c.metadata, "servers", 0, "url")
			wantURL(t, served, s.URL(""), "paths", "/.well-known/oauth-protected-resource", "servers", 0, "url")
			wantURL(t, served, s.URL(c.base+"/oauth/token"), "components", "securitySchemes", "oauth2", "flows", "clientCredentials", "tokenUrl")

			want := maps.Clone(static["paths"].(map[string]any))
			want[c.metadata] = want["/.well-known/oauth-authorization-server"]
			if c.metadata != "/.well-known/oauth-authorization-server" {
				delete(want, "/.well-known/oauth-authorization-server")
			}
			if !strings.Contains(c.options, "mcp_compat") {
				delete(want, "/oauth/authorize")
			}
			got := slices.Sorted(maps.Keys(served["paths"].(map[string]any)))
			if paths := slices.Sorted(maps.Keys(want)); !reflect.DeepEqual(got, paths) {
				t.Errorf("the paths are %q, want %q", got, paths)
			}
		})
	}
}

// wantURL checks a text of a JSON document, at the end of names and indexes.
func wantURL(t testing.TB, document any, want string, names ...any) {
	t.Helper()
	for _, name := range names {
		switch name := name.(type) {
		case string:
			members, _ := document.(map[string]any)
			document = members[name]
		case int:
			elements, _ := document.([]any)
			if name >= len(elements) {
				t.Errorf("%v: nothing there", names)
				return
			}
			document = elements[name]
		}
	}
	if document != want {
		t.Errorf("%v is %v, want %s", names, document, want)
	}
}
