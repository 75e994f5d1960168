package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/clientcredentials/caddy-client-credentials/issuer"
	"github.com/clientcredentials/caddy-client-credentials/store/badger"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "bench-store",
		Short: "Makes a store with credentials, and files with what their clients send",
		CobraFunc: func(cmd *cobra.Command) {
			var p population
			flags := cmd.Flags()
			flags.StringVar(&p.dir, "dir", "", "the directory to fill")
			flags.StringVar(&p.algorithm, "algorithm", "ES256", "what signs the tokens: ES256, EdDSA or RS256")
			flags.IntVar(&p.credentials, "credentials", 100, "how many stay active")
			flags.IntVar(&p.tokens, "tokens", 100, "how many tokens, dealt out to the credentials in turn")
			flags.IntVar(&p.revoked, "revoked", 0, "how many more credentials are revoked, each with a token")
			flags.IntVar(&p.revokedTokens, "revoked-tokens", 0, "how many more tokens are revoked one by one")
			flags.DurationVar(&p.lifetime, "lifetime", time.Hour, "how long the tokens live")
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return p.make(cmd.Context()) }
		},
	})
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "bench-open",
		Short: "Opens the Badger database of a directory, and prints how many milliseconds that took",
		CobraFunc: func(cmd *cobra.Command) {
			dir := cmd.Flags().String("dir", "", "Badger's directory")
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return timeOpen(cmd.Context(), *dir) }
		},
	})
}

func timeOpen(ctx context.Context, dir string) error {
	engine := badger.Badger{Path: dir}
	if err := engine.Provision(caddy.Context{}); err != nil {
		return err
	}
	begin := time.Now()
	db, err := engine.Open(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("%.3f\n", float64(time.Since(begin).Microseconds())/1000)
	return db.Close()
}

// population is what a store is filled with.
type population struct {
	dir, algorithm         string
	credentials, tokens    int
	revoked, revokedTokens int
	lifetime               time.Duration

	issuer *issuer.Issuer
}

// client is a credential with its secret.
type client struct{ id, secret string }

func (c client) authentication() issuer.ClientAuthentication {
	return issuer.ClientAuthentication{ClientID: c.id, Secrets: []string{c.secret}}
}

// form is the body of the request for a token.
func (c client) form() string {
	return url.Values{"grant_type": {"client_credentials"}, "client_id": {c.id}, "client_secret": {c.secret}}.Encode()
}

// make fills the directory: badger and caddy are what a server needs, the files
// beside them have a request's body or token on each line.
func (p *population) make(ctx context.Context) error {
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return err
	}
	if err := writeKey(filepath.Join(p.dir, "signing_key.pem"), p.algorithm); err != nil {
		return err
	}
	if err := p.open(); err != nil {
		return err
	}
	defer func() { _ = caddy.Stop() }()

	manager, err := p.createAll(ctx, "manager", 1, issuer.ScopeWrite, scope)
	if err != nil {
		return err
	}
	if err := p.mintAll(ctx, "manager_token", manager, 1, nil); err != nil {
		return err
	}
	active, err := p.createAll(ctx, "clients", p.credentials, scope)
	if err != nil {
		return err
	}
	if err := p.mintAll(ctx, "tokens", active, p.tokens, nil); err != nil {
		return err
	}
	if err := p.mintAll(ctx, "revoked_tokens", active, p.revokedTokens, p.revokeToken); err != nil {
		return err
	}
	gone, err := p.createAll(ctx, "revoked_clients", p.revoked, scope)
	if err != nil {
		return err
	}
	return p.mintAll(ctx, "tokens_of_revoked", gone, p.revoked, func(ctx context.Context, c client, _ string) error {
		return p.issuer.Revoke(ctx, "", c.id)
	})
}

// open runs the app of the plugin, alone.
func (p *population) open() error {
	app := fmt.Sprintf(`{"issuer":%q,"token_lifetime":%d,"signing_key":%q,"store":{"module":"badger","path":%q}}`,
		issuerName, p.lifetime, filepath.Join(p.dir, "signing_key.pem"), filepath.Join(p.dir, "badger"))
	persist := false
	err := caddy.Run(&caddy.Config{
		Admin:      &caddy.AdminConfig{Disabled: true, Config: &caddy.ConfigSettings{Persist: &persist}},
		StorageRaw: json.RawMessage(fmt.Sprintf(`{"module":"file_system","root":%q}`, filepath.Join(p.dir, "caddy"))),
		AppsRaw:    caddy.ModuleMap{"client_credentials": json.RawMessage(app)},
	})
	if err != nil {
		return err
	}
	running, err := caddy.ActiveContext().App("client_credentials")
	if err != nil {
		return err
	}
	p.issuer, err = running.(*issuer.App).Open()
	return err
}

func (p *population) createAll(ctx context.Context, file string, n int, scopes ...string) ([]client, error) {
	clients := make([]client, n)
	err := p.writeLines(file, n, func(i int) (string, error) {
		c, secret, err := p.issuer.Create(ctx, issuer.Draft{Scopes: scopes})
		if err != nil {
			return "", err
		}
		clients[i] = client{c.ClientID, secret}
		return clients[i].form(), nil
	})
	return clients, err
}

// mintAll writes tokens, and does something to each once it is made, if told to.
func (p *population) mintAll(ctx context.Context, file string, clients []client, n int, then func(context.Context, client, string) error) error {
	return p.writeLines(file, n, func(i int) (string, error) {
		c := clients[i%len(clients)]
		issued, err := p.issuer.Issue(ctx, issuer.TokenRequest{ClientAuthentication: c.authentication(), GrantType: "client_credentials"})
		if err != nil {
			return "", err
		}
		if then != nil {
			err = then(ctx, c, issued.Token)
		}
		return issued.Token, err
	})
}

func (p *population) revokeToken(ctx context.Context, c client, token string) error {
	caller, err := p.issuer.Authenticate(ctx, c.authentication())
	if err != nil {
		return err
	}
	_, err = p.issuer.RevokeToken(ctx, caller, token)
	return err
}

// writeLines writes what line returns for 0 to n-1, in this order, and calls it
// from several goroutines.
func (p *population) writeLines(name string, n int, line func(int) (string, error)) error {
	file, err := os.Create(filepath.Join(p.dir, name))
	if err != nil {
		return err
	}
	defer file.Close()
	out := bufio.NewWriter(file)
	const batch = 10_000
	for first := 0; first < n; first += batch {
		lines := make([]string, min(batch, n-first))
		var group errgroup.Group
		group.SetLimit(8 * runtime.NumCPU())
		for i := range lines {
			group.Go(func() (err error) {
				lines[i], err = line(first + i)
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, l := range lines {
			_, _ = fmt.Fprintln(out, l) // Flush returns the error
		}
	}
	if err := out.Flush(); err != nil {
		return err
	}
	return file.Close()
}
