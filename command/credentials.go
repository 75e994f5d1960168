package command

import (
	"encoding/json"
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
		draft := map[string]any{"account": fl.String("account"), "scopes": *scopes, "audiences": *audiences}
		for _, flag := range []string{"name", "expires"} {
			if fl.Changed(flag) {
				draft[flag] = fl.String(flag)
			}
		}
		if url := fl.String("jwks-uri"); url != "" {
			draft["jwksUri"] = url
		}
		if file := fl.String("jwks"); file != "" {
			var err error
			if draft["jwks"], err = readJSON(file); err != nil {
				return err
			}
		}
		created, err := ask(m, http.MethodPost, handler.AdminCredentialsPath, draft)
		if err != nil {
			return err
		}
		return output(cmd, created, printCreated)
	})
	return cmd
}

func listCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list [--json]",
		Short: "Lists the credentials of all accounts that have not ended",
		Args:  cobra.NoArgs,
	}
	cmd.Flags().Bool("json", false, "Print a JSON array")
	run(cmd, func(cmd *cobra.Command, m manager, _ []string) error {
		list, err := ask(m, http.MethodGet, handler.AdminCredentialsPath, nil)
		if err != nil {
			return err
		}
		return output(cmd, list, printList)
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
		if _, err := ask(m, http.MethodDelete, credentialPath(args[0]), nil); err != nil {
			return err
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "revoked", args[0])
		return err
	})
	return cmd
}

func credentialPath(clientID string) string {
	return handler.AdminCredentialsPath + "/" + segment(clientID)
}

// segment escapes a part of a path so that it stays that one part, also "..".
func segment(text string) string { return strings.ReplaceAll(url.PathEscape(text), ".", "%2E") }

func readJSON(file string) (json.RawMessage, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if !json.Valid(text) {
		return nil, misused("%s holds no JSON", file)
	}
	return text, nil
}

// output writes an answer of the API as it is, or with show for people.
func output(cmd *cobra.Command, answer []byte, show func(io.Writer, []byte) error) error {
	if asJSON, _ := cmd.Flags().GetBool("json"); !asJSON {
		return show(cmd.OutOrStdout(), answer)
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s\n", answer)
	return err
}

// read reads an answer of the API.
func read(answer []byte, target any) error {
	if err := json.Unmarshal(answer, target); err != nil {
		return fmt.Errorf("reading the server's answer: %w", err)
	}
	return nil
}

// credential is what the commands read of one.
type credential struct {
	ClientID, Account, Status, Created string
	Name, Expires                      *string
	Scopes                             []string
}

func printCreated(w io.Writer, created []byte) error {
	var c struct{ ClientID, Secret string }
	if err := read(created, &c); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "client id  %s\nsecret     %s\n\nThe secret is shown this once; it can't be read again.\n", c.ClientID, c.Secret)
	return err
}

func printList(w io.Writer, list []byte) error {
	var credentials []credential
	if err := read(list, &credentials); err != nil {
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "CLIENT ID\tNAME\tACCOUNT\tSTATUS\tSCOPES\tCREATED\tEXPIRES")
	for _, c := range credentials {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.ClientID, orDash(c.Name), c.Account, c.Status,
			strings.Join(c.Scopes, " "), c.Created, orDash(c.Expires))
	}
	return table.Flush()
}
