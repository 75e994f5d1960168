// Package command is the command line: caddy client-credentials.
package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/clientcredentials/caddy-client-credentials/handler"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "client-credentials",
		Usage: "<create|list|revoke|check-token|keys|rotate-key|revoke-key|rewrap|replace-lost-master-key|export-key|import-key|backup|verify|restore|copy|import|export|hash-secret|accept-loss>",
		Short: "Manages the credentials of machine clients",
		Long: `
Creates, lists and revokes the credentials that the client_credentials app
keeps, and says why a token is refused. The first one of a new server is made here, for example:

	caddy client-credentials create --name ops --scope client-credentials:write

The commands talk to the running Caddy through its admin endpoint at
--address, or where the configuration (--config, --adapter) has it. With
--offline they open the store of the configuration themselves, which works
only while no server holds it. Those that move the store or its master key, or
mend it, do so always: restore, copy, export-key, import-key and accept-loss.`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.PersistentFlags().String("address", "", "Address of the administration API listener (if --config is not used)")
			cmd.PersistentFlags().StringP("config", "c", "", "Configuration file (default: the Caddyfile in this directory, if there is one)")
			cmd.PersistentFlags().StringP("adapter", "a", "", "Name of config adapter to apply (if --config is used)")
			cmd.PersistentFlags().Bool("offline", false, "Open the store itself; no server may hold it")
			cmd.AddCommand(createCommand(), listCommand(), revokeCommand(), checkCommand(),
				keysCommand(), rotateKeyCommand(), revokeKeyCommand(), rewrapCommand(), replaceLostMasterKeyCommand(), exportKeyCommand(), importKeyCommand(),
				backupCommand(), verifyCommand(), restoreCommand(), copyCommand(), importCommand(), exportCommand(), hashSecretCommand(), acceptLossCommand())
			cmd.RunE = func(cmd *cobra.Command, args []string) error {
				if len(args) == 0 {
					return cmd.Help()
				}
				return fmt.Errorf("there is no command %q: see caddy client-credentials --help", args[0])
			}
		},
	})
}

func createCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "create [--name <name>] [--scope <scope>]... [--audience <audience>]... [--jwks <file> | --jwks-uri <url>] [--account <account>] [--expires <time>] [--json]",
		Short: "Creates a credential and shows its secret, once",
		Args:  cobra.NoArgs,
	}
	cmd.Flags().String("name", "", "A label for people")
	scopes := cmd.Flags().StringArray("scope", nil, "A scope that its tokens may carry; can be repeated")
	audiences := cmd.Flags().StringArray("audience", nil, "What its tokens may be for; can be repeated (default: the audience of the configuration)")
	cmd.Flags().String("jwks", "", "A file with the JWK Set of the public keys that it may authenticate by")
	cmd.Flags().String("jwks-uri", "", "The URL at which it publishes that JWK Set")
	cmd.Flags().String("account", "", "The account that it belongs to (default: default)")
	cmd.Flags().String("expires", "", "When it stops working, as RFC 3339 has it: 2030-01-31T12:00:00Z (default: never)")
	cmd.Flags().Bool("json", false, "Print exactly the JSON object that the API answers")
	run(cmd, func(cmd *cobra.Command, m manager, _ []string) error {
		fl := caddycmd.Flags{FlagSet: cmd.Flags()}
		draft := handler.AdminDraft{Account: fl.String("account"), Scopes: *scopes, Audiences: *audiences, KeysURL: fl.String("jwks-uri")}
		if cmd.Flags().Changed("name") {
			name := fl.String("name")
			draft.Name = &name
		}
		if cmd.Flags().Changed("expires") {
			expires := fl.String("expires")
			draft.Expires = &expires
		}
		if file := fl.String("jwks"); file != "" {
			var err error
			if draft.Keys, err = os.ReadFile(file); err != nil {
				return err
			}
			if !json.Valid(draft.Keys) {
				return fmt.Errorf("%s holds no JSON", file)
			}
		}
		created, err := m.create(draft)
		if err != nil {
			return err
		}
		return printCreated(cmd.OutOrStdout(), created, fl.Bool("json"))
	})
	return cmd
}

func listCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list [--json]",
		Short: "Lists the active credentials of all accounts",
		Args:  cobra.NoArgs,
	}
	cmd.Flags().Bool("json", false, "Print a JSON array")
	run(cmd, func(cmd *cobra.Command, m manager, _ []string) error {
		list, err := m.list()
		if err != nil {
			return err
		}
		return printList(cmd.OutOrStdout(), list, caddycmd.Flags{FlagSet: cmd.Flags()}.Bool("json"))
	})
	return cmd
}

func revokeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revoke <client id>",
		Short: "Revokes a credential and every token that it has obtained, at once",
		Args:  cobra.ExactArgs(1),
	}
	run(cmd, func(cmd *cobra.Command, m manager, args []string) error {
		if err := m.revoke(args[0]); err != nil {
			return err
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "revoked", args[0])
		return err
	})
	return cmd
}

func checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check-token [--audience <audience>] [--scope <scope>]... [--json]",
		Short: "Reads a token from standard input and says whether a guard would accept it, and if not, why",
		Long: `
Reads a token from standard input and says whether a guard would accept it now,
and if not, why. The guard is one that asks for --audience and for every --scope;
without them, for the audience of the configuration and no scope. For example:

	echo "$TOKEN" | caddy client-credentials check-token --scope items:read

It ends with status 1 where the token would be refused.`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().String("audience", "", "The audience that the guard asks for (default: that of the configuration)")
	scopes := cmd.Flags().StringArray("scope", nil, "A scope that the guard asks for; can be repeated")
	cmd.Flags().Bool("json", false, "Print a JSON object")
	run(cmd, func(cmd *cobra.Command, m manager, _ []string) error {
		text, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), maxTokenInput))
		if err != nil {
			return err
		}
		token := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(string(text)), "Bearer "))
		if token == "" {
			return errors.New("there is no token on standard input")
		}
		fl := caddycmd.Flags{FlagSet: cmd.Flags()}
		verdict, err := m.check(handler.TokenCheck{Token: token, Audience: fl.String("audience"), Scopes: *scopes})
		if err != nil {
			return err
		}
		return printVerdict(cmd.OutOrStdout(), verdict, fl.Bool("json"))
	})
	return cmd
}

// maxTokenInput is more than any token has that a guard would read, in bytes.
const maxTokenInput = 32 << 10

// manager is where a command does its work: a running server, or a store.
type manager interface {
	create(handler.AdminDraft) ([]byte, error)
	list() ([]byte, error)
	revoke(clientID string) error
	check(handler.TokenCheck) ([]byte, error)
	keys() ([]byte, error)
	rotateKey() ([]byte, error)
	revokeKey(id string) error
	rewrap(handler.NewMasterKey) error
	importLines(lines io.Reader, try bool, report func(handler.ImportedLine) error) error
	exportLines(w io.Writer) error
}

func run(cmd *cobra.Command, do func(*cobra.Command, manager, []string) error) {
	runPlain(cmd, func(cmd *cobra.Command, fl caddycmd.Flags, args []string) error {
		m, done, err := open(fl)
		if err != nil {
			return err
		}
		defer done()
		return do(cmd, m, args)
	})
}

func runPlain(cmd *cobra.Command, do func(*cobra.Command, caddycmd.Flags, []string) error) {
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return caddycmd.WrapCommandFuncForCobra(func(fl caddycmd.Flags) (int, error) {
			if err := do(cmd, fl, args); err != nil {
				return 1, err
			}
			return 0, nil
		})(cmd, args)
	}
}

func open(fl caddycmd.Flags) (m manager, done func(), err error) {
	if fl.Bool("offline") {
		return openOffline(configFile(fl, true), fl.String("adapter"))
	}
	s, err := findServer(fl)
	return s, func() {}, err
}

func findServer(fl caddycmd.Flags) (server, error) {
	address, err := caddycmd.DetermineAdminAPIAddress(fl.String("address"), nil, configFile(fl, false), fl.String("adapter"))
	if err != nil {
		return server{}, fmt.Errorf("couldn't determine the admin API's address: %w", err)
	}
	return server{address}, nil
}

// configFile returns the configuration that is meant: the Caddyfile here, where
// none is named and it is needed.
func configFile(fl caddycmd.Flags, offline bool) string {
	config := fl.String("config")
	if config == "" && (offline || fl.String("address") == "") {
		if _, err := os.Stat("Caddyfile"); err == nil {
			return "Caddyfile"
		}
	}
	return config
}

// server is a running Caddy, by the address of its admin endpoint.
type server struct{ address string }

func (s server) create(draft handler.AdminDraft) ([]byte, error) {
	body, err := json.Marshal(draft)
	if err != nil {
		return nil, err
	}
	return s.request(http.MethodPost, handler.AdminPath, bytes.NewReader(body))
}

func (s server) list() ([]byte, error) {
	return s.request(http.MethodGet, handler.AdminPath, nil)
}

func (s server) revoke(clientID string) error {
	_, err := s.request(http.MethodDelete, handler.AdminPath+"/"+url.PathEscape(clientID), nil)
	return err
}

func (s server) check(check handler.TokenCheck) ([]byte, error) {
	body, err := json.Marshal(check)
	if err != nil {
		return nil, err
	}
	return s.request(http.MethodPost, handler.AdminCheckPath, bytes.NewReader(body))
}

func (s server) request(method, path string, body io.Reader) ([]byte, error) {
	answer, err := s.stream(method, path, body)
	if err != nil {
		return nil, err
	}
	defer answer.Close()
	return io.ReadAll(answer)
}

// stream sends a request and returns the body of the answer.
func (s server) stream(method, path string, body io.Reader) (io.ReadCloser, error) {
	resp, err := caddycmd.AdminAPIRequest(s.address, method, path, make(http.Header), body)
	if err != nil && strings.HasPrefix(err.Error(), "performing request") { // it is of no type
		return nil, fmt.Errorf("no Caddy answers at %s: name its admin endpoint by --address or --config, "+
			"or, if none runs, use --offline: %w", s.address, err)
	}
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

func printCreated(w io.Writer, created []byte, asJSON bool) error {
	if asJSON {
		_, err := fmt.Fprintf(w, "%s\n", created)
		return err
	}
	var c struct{ ClientID, Secret string }
	if err := json.Unmarshal(created, &c); err != nil {
		return fmt.Errorf("reading the server's answer: %w", err)
	}
	_, err := fmt.Fprintf(w, "client id  %s\nsecret     %s\n\nThe secret is shown this once; it can't be read again.\n", c.ClientID, c.Secret)
	return err
}

func printList(w io.Writer, list []byte, asJSON bool) error {
	if asJSON {
		_, err := fmt.Fprintf(w, "%s\n", list)
		return err
	}
	var credentials []struct {
		ClientID, Account, Created string
		Name, Expires              *string
		Scopes                     []string
	}
	if err := json.Unmarshal(list, &credentials); err != nil {
		return fmt.Errorf("reading the server's answer: %w", err)
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "CLIENT ID\tNAME\tACCOUNT\tSCOPES\tCREATED\tEXPIRES")
	for _, c := range credentials {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n", c.ClientID, orDash(c.Name), c.Account,
			strings.Join(c.Scopes, " "), c.Created, orDash(c.Expires))
	}
	return table.Flush()
}

// printVerdict returns an error where the token would be refused.
func printVerdict(w io.Writer, verdict []byte, asJSON bool) error {
	var v struct {
		Accepted               bool
		Reason, Scope, Expires string
		ClientID               string   `json:"client_id"`
		ID                     string   `json:"jti"`
		Audience               []string `json:"aud"`
	}
	if err := json.Unmarshal(verdict, &v); err != nil {
		return fmt.Errorf("reading the server's answer: %w", err)
	}
	if asJSON {
		if _, err := fmt.Fprintf(w, "%s\n", verdict); err != nil {
			return err
		}
	}
	if !v.Accepted {
		return fmt.Errorf("the token would be refused: %s", v.Reason)
	}
	if asJSON {
		return nil
	}
	_, err := fmt.Fprintf(w, "accepted\nclient id  %s\njti        %s\nscopes     %s\naudiences  %s\nexpires    %s\n",
		v.ClientID, v.ID, v.Scope, strings.Join(v.Audience, " "), v.Expires)
	return err
}

func orDash(s *string) string {
	if s == nil {
		return "-"
	}
	return *s
}
