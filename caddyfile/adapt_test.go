package caddyfile_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

// Each file of testdata is a Caddyfile, a line of dashes, and what becomes of
// it: the JSON, or the error.
func TestCaddyfilesBecomeWhatTheirFilesSay(t *testing.T) {
	folder, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(folder, "*.caddyfiletest"))
	if err != nil || len(files) < 100 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	t.Setenv("TESTDATA", folder)
	prepareEnvironment(t)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".caddyfiletest"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			caddyfile, want, found := strings.Cut(string(text), "\n----------\n")
			if !found {
				t.Fatal("no line of dashes")
			}
			got, err := adapt(t, caddyfile+"\n")
			if err != nil {
				got = err.Error()
			}
			if want = strings.TrimSpace(want); got != want {
				t.Errorf("it became\n%s\nwant\n%s", got, want)
			}
			if err == nil {
				wantNoTrace(t, got)
			}
		})
	}
}

// adapt returns a Caddyfile as indented JSON.
func adapt(t *testing.T, caddyfile string) (string, error) {
	t.Helper()
	config, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return "", err
	}
	for _, warning := range warnings {
		t.Error(warning)
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, config, "", "\t"); err != nil {
		t.Fatal(err)
	}
	return indented.String(), nil
}

// validate does what `caddy validate` does, with Caddy's storage in a folder of
// the test.
func validate(t *testing.T, config string) error {
	t.Helper()
	var parsed caddy.Config
	if err := json.Unmarshal([]byte(config), &parsed); err != nil {
		t.Fatal(err)
	}
	parsed.StorageRaw = caddyconfig.JSON(map[string]string{"module": "file_system", "root": filepath.Join(t.TempDir(), "storage")}, nil)
	return caddy.Validate(&parsed)
}

// wantNoTrace validates, and looks for what that has left: the working
// directory is where all stores of testdata and the default one are.
func wantNoTrace(t *testing.T, config string) {
	t.Helper()
	before := files(t)
	if err := validate(t, config); err != nil {
		t.Errorf("it does not validate: %v", err)
	}
	if after := files(t); after != before {
		t.Errorf("validating left a trace: %s, before: %s", after, before)
	}
}

// files names what is in the working directory and below.
func files(t *testing.T) string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		names = append(names, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(names, " ")
}

// prepareEnvironment goes to a directory with the files that testdata names,
// and sets the variables.
func prepareEnvironment(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	t.Chdir(dir)
	master := base64.StdEncoding.EncodeToString(randomBytes(32))
	for name, value := range map[string]string{
		"XDG_DATA_HOME":    dir,
		"TEST_MASTER_KEY":  master,
		"TEST_ISSUER":      "https://api.example.com",
		"TEST_AUDIENCE":    "https://stock.example.com",
		"TEST_STORE":       "credentials",
		"TEST_DATABASE":    "postgres://app:secret@db.example.com/credentials",
		"TEST_SECRET_HASH": "$2y$04$y6.4hiA/L77MJQOLJaOKxOyTOZrZN8Y1nNY.qrOwdgnAZhtEWlGfG",
		"TEST_SIGNING_KEY": "key.pem",
	} {
		t.Setenv(name, value)
	}
	writeFile(t, "master.key", master+"\n")
	writeFile(t, "key.pem", pemOf("PRIVATE KEY", pkcs8(t, newECKey(t))))
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return b
}

func newECKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	return newECKeyOn(t, elliptic.P256())
}

func pkcs8(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func TestAnErrorNeverRepeatsTheMasterKey(t *testing.T) {
	secret := base64.StdEncoding.EncodeToString(randomBytes(32))
	for _, setting := range []string{
		"master_key " + secret + " {env.OTHER}",
		"master_key {env.OTHER} " + secret,
		"master_key " + secret + "\n\t\tmaster_key " + secret,
		"master_key " + secret + " {\n\t\t\toptional\n\t\t}",
	} {
		_, err := adapt(t, "{\n\tclient_credentials {\n\t\tissuer https://api.example.com\n\t\t"+setting+"\n\t}\n}\n")
		switch {
		case err == nil:
			t.Errorf("accepted: %s", setting)
		case strings.Contains(err.Error(), secret):
			t.Errorf("the error repeats the key: %v", err)
		case !strings.Contains(err.Error(), "at Caddyfile:"):
			t.Errorf("the error names no line: %v", err)
		}
	}
}

// Caddy keeps only the first handler of a named route whose directives have no
// matcher: what a directive becomes must not let its guard be lost by that.
func TestAGuardInsideANamedRouteGuards(t *testing.T) {
	for _, directives := range []string{
		"bearer_auth",
		"bearer_auth * items:read",
		"bearer_auth /* items:read",
		"client_credentials",
		"client_credentials /*",
		"client_credentials\n\tbearer_auth items:read",
		"header X-Before guard\n\tbearer_auth",
		"bearer_auth\n\trequest_header X-After guard",
		"bearer_auth\n\treverse_proxy {{upstream}}",
	} {
		t.Run(directives, func(t *testing.T) {
			s := testserver.New(t)
			s.Run(t, strings.Replace(namedRoute, "directives", directives, 1))
			if resp := s.Do(t, "GET", "/items/1", ""); resp.StatusCode != 401 || len(s.Upstream.Take()) != 0 {
				t.Fatalf("without a token: %s", resp.Status)
			}
			token := s.Token(t, s.CreateWith(t, "items:read"))
			if resp := s.Do(t, "GET", "/items/1", "", testserver.Bearer(token)...); resp.StatusCode != 200 || len(s.Upstream.Take()) != 1 {
				t.Fatalf("with a token: %s", resp.Status)
			}
		})
	}
}

const namedRoute = `{
	{{global}}
	client_credentials {
		issuer {{url}}
		store badger {{dir}}/store
	}
}

&(guarded) {
	directives
}

{{url}} {
	handle /api/* {
		client_credentials
	}
	handle {
		invoke guarded
		reverse_proxy {{upstream}}
	}
}
`
