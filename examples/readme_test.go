package examples_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// leastOptions go in front of the README's blocks that begin with a site.
const leastOptions = "{\n\tclient_credentials {\n\t\tissuer https://api.example.com\n\t}\n}\n\n"

var fence = regexp.MustCompile("(?ms)^```([a-z]+)\n(.*?)^```$")

// block is a fenced block of a document.
type block struct{ language, text string }

func readmeBlocks(t *testing.T, languages ...string) []block {
	t.Helper()
	var blocks []block
	for _, found := range fence.FindAllStringSubmatch(read(t, "../README.md"), -1) {
		for _, language := range languages {
			if found[1] == language {
				blocks = append(blocks, block{language, found[2]})
			}
		}
	}
	if len(blocks) == 0 {
		t.Fatalf("the README has no blocks of %s", languages)
	}
	return blocks
}

func TestReadmeCaddyfilesAreValid(t *testing.T) {
	t.Setenv("MASTER_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=")
	key := writeSigningKey(t)
	for _, b := range readmeBlocks(t, "caddyfile") {
		text := strings.ReplaceAll(b.text, "/run/secrets/signing_key.pem", key)
		if !strings.HasPrefix(text, "{") {
			text = leastOptions + text
		}
		validate(t, adapt(t, text))
	}
}

// The JSON of a configuration follows the Caddyfile that it is the twin of.
func TestReadmeJSONIsTheCaddyfiles(t *testing.T) {
	var caddyfile string
	twins := 0
	for _, b := range readmeBlocks(t, "caddyfile", "json") {
		if b.language == "caddyfile" {
			caddyfile = b.text
			continue
		}
		if !strings.Contains(b.text, `"apps"`) {
			continue
		}
		twins++
		if want := decode(t, string(adapt(t, caddyfile))); !reflect.DeepEqual(decode(t, b.text), want) {
			t.Errorf("%s\nis not the JSON of\n%s", b.text, caddyfile)
		}
	}
	if twins == 0 {
		t.Error("the README shows no JSON configuration")
	}
}

// A JSON block that is a route is tried inside of a site.
func TestReadmeJSONRoutesAreValid(t *testing.T) {
	routes := 0
	for _, b := range readmeBlocks(t, "json") {
		if !strings.Contains(b.text, `"handle"`) || strings.Contains(b.text, `"apps"`) {
			continue
		}
		routes++
		config := string(adapt(t, leastOptions+"api.example.com {\n\trespond TAKE-ITS-PLACE\n}\n"))
		place := `{"body":"TAKE-ITS-PLACE","handler":"static_response"}`
		if !strings.Contains(config, place) {
			t.Fatalf("no place in %s", config)
		}
		validate(t, []byte(strings.ReplaceAll(config, place, `{"handler":"subroute","routes":[`+b.text+`]}`)))
	}
	if routes == 0 {
		t.Error("the README shows no JSON route")
	}
}

func TestReadmeNamesItsCommands(t *testing.T) {
	var shell strings.Builder
	for _, b := range readmeBlocks(t, "sh") {
		shell.WriteString(b.text)
	}
	for _, command := range []string{"go run ./examples/quickstart\n", "go test ./...\n"} {
		if !strings.Contains(shell.String(), command) {
			t.Errorf("the README has no command %q", command)
		}
	}
}

func validate(t *testing.T, config []byte) {
	t.Helper()
	var parsed caddy.Config
	if err := caddy.StrictUnmarshalJSON(private(t, config, t.TempDir()), &parsed); err != nil {
		t.Fatalf("%v\n%s", err, config)
	}
	if err := caddy.Validate(&parsed); err != nil {
		t.Errorf("%v\n%s", err, config)
	}
}

func decode(t *testing.T, text string) (value any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &value); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return value
}

// writeSigningKey returns the path of a new private key.
func writeSigningKey(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
