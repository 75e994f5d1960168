package command

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/clientcredentials/caddy-client-credentials/handler"
)

func createCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "create [--name <name>] [--scope <scope>]... [--audience <audience>]... [--grantable <scope>]... " +
			"[--token-lifetime <duration>] [--claims <json>] [--tokens-per-hour <number>] [--requests-per-second <number>] [--jwks <file> | --jwks-uri <url>] [--account <account>] [--expires <time>] [--json]",
		Short: "Creates a credential and shows its secret, once",
		Args:  cobra.NoArgs,
	}
	addMemberFlags(cmd)
	cmd.Flags().String("jwks", "", "A file with the JWK Set of the public keys that it may authenticate by")
	cmd.Flags().String("jwks-uri", "", "The URL at which it publishes that JWK Set")
	cmd.Flags().String("account", "", "The account that it belongs to (default: default)")
	cmd.Flags().Bool("json", false, "Print exactly the JSON object that the API answers")
	completeFlag(cmd, "account", completeAccount)
	run(cmd, func(cmd *cobra.Command, m manager, _ []string) error {
		draft, err := namedMembers(cmd)
		if err != nil {
			return err
		}
		fl := caddycmd.Flags{FlagSet: cmd.Flags()}
		draft["account"] = fl.String("account")
		if url := fl.String("jwks-uri"); url != "" {
			draft["jwksUri"] = url
		}
		if file := fl.String("jwks"); file != "" {
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

// listFilters are the flags of list, by the parameters of the API's list.
var listFilters = []struct{ flag, parameter, help string }{
	{"account", "account", "Those of this account alone"},
	{"name", "name", "Those whose name begins so, in any letter case"},
	{"scope", "scope", "Those that have this scope"},
	{"unused-since", "unusedSince", "Those that were created before this time (RFC 3339), and have not authenticated since"},
	{"expires-before", "expiresBefore", "Those that expire before this time (RFC 3339)"},
	{"status", "status", "Those that are active, disabled, expired or revoked (default: the first two)"},
}

func listCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list [--account <account>] [--name <name>] [--scope <scope>] [--unused-since <time>] [--expires-before <time>] [--status <status>] [--json]",
		Short: "Lists the credentials that fit all of the flags; without any, those of all accounts that have not ended",
		Args:  cobra.NoArgs,
	}
	for _, filter := range listFilters {
		cmd.Flags().String(filter.flag, "", filter.help)
	}
	cmd.Flags().Bool("json", false, "Print a JSON array")
	completeFlag(cmd, "account", completeAccount)
	run(cmd, func(cmd *cobra.Command, m manager, _ []string) error {
		query := make(url.Values)
		for _, filter := range listFilters {
			if flag := cmd.Flags().Lookup(filter.flag); flag.Changed {
				query.Set(filter.parameter, flag.Value.String())
			}
		}
		list, err := ask(m, http.MethodGet, listPath(query), nil)
		if err != nil {
			return err
		}
		return output(cmd, list, printList)
	})
	return cmd
}

func showCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "show <client id> [--json]",
		Short:             "Shows a credential",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeClient,
	}
	cmd.Flags().Bool("json", false, "Print a JSON object")
	run(cmd, func(cmd *cobra.Command, m manager, args []string) error {
		shown, err := ask(m, http.MethodGet, credentialPath(args[0]), nil)
		if err != nil {
			return err
		}
		return output(cmd, shown, printCredential)
	})
	return cmd
}

func revokeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revoke <client id> | --account <account> | --created-by <client id> [--yes] [--json]",
		Short: "Revokes a credential and every token that it has obtained, at once; or many",
		Long: `
Revokes a credential and every token that it has obtained, at once. With
--account, all credentials of that account; with --created-by, all that a
credential has created, itself or through others, in whatever account, and not that
one. It asks before it revokes many.`,
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeClient,
	}
	cmd.Flags().String("account", "", "Revoke all of this account")
	cmd.Flags().String("created-by", "", "Revoke all that this credential has created")
	cmd.Flags().Bool("json", false, "Print a JSON object with the number of credentials that were revoked")
	addYesFlag(cmd)
	completeFlag(cmd, "account", completeAccount)
	completeFlag(cmd, "created-by", completeCreator)
	run(cmd, func(cmd *cobra.Command, m manager, args []string) error {
		fl := caddycmd.Flags{FlagSet: cmd.Flags()}
		account, creator := fl.String("account"), fl.String("created-by")
		switch {
		case len(args) == 1 && !fl.Changed("account") && !fl.Changed("created-by"):
			if _, err := ask(m, http.MethodDelete, credentialPath(args[0]), nil); err != nil {
				return err
			}
			return output(cmd, []byte(`{"revoked":1}`), func(w io.Writer, _ []byte) error {
				_, err := fmt.Fprintln(w, "revoked", args[0])
				return err
			})
		case len(args) == 0 && account != "" && !fl.Changed("created-by"):
			return revokeAccount(cmd, m, account)
		case len(args) == 0 && creator != "" && !fl.Changed("account"):
			if err := confirm(cmd, "this revokes all that "+creator+" has created, itself or through others", "yes"); err != nil {
				return err
			}
			return revokeAll(cmd, m, "createdBy", creator)
		}
		return misused("name one: a client id, --account or --created-by")
	})
	return cmd
}

func revokeAccount(cmd *cobra.Command, m manager, account string) error {
	text, err := ask(m, http.MethodGet, listPath(url.Values{"account": {account}}), nil)
	if err != nil {
		return err
	}
	var list []credential
	if err := read(text, &list); err != nil {
		return err
	}
	number := strconv.Itoa(len(list))
	if err := confirm(cmd, "this revokes all credentials of the account "+account+", "+number+" at present", number); err != nil {
		return err
	}
	return revokeAll(cmd, m, "account", account)
}

func revokeAll(cmd *cobra.Command, m manager, selection, value string) error {
	answer, err := ask(m, http.MethodDelete, handler.AdminCredentialsPath+"?"+url.Values{selection: {value}}.Encode(), nil)
	if err != nil {
		return err
	}
	return output(cmd, answer, func(w io.Writer, answer []byte) error {
		var done struct{ Revoked int }
		if err := read(answer, &done); err != nil {
			return err
		}
		_, err := fmt.Fprintln(w, "revoked", done.Revoked, "credentials")
		return err
	})
}

func credentialPath(clientID string) string {
	return handler.AdminCredentialsPath + "/" + segment(clientID)
}

func listPath(query url.Values) string {
	return handler.AdminCredentialsPath + "?" + query.Encode()
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
	ClientID, CredentialID, Account, Status, Created string
	CreatedBy, TokenLifetime, JWKSURI                string

	Name, Expires, LastUsed      *string
	Scopes, Audiences, Grantable []string
	Claims                       json.RawMessage
	Declared                     bool
	TokensPerHour                int
	RequestsPerSecond            int
	JWKS                         *struct {
		Keys []json.RawMessage
	}
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
	fmt.Fprintln(table, "CLIENT ID\tNAME\tACCOUNT\tSTATUS\tSCOPES\tCREATED\tEXPIRES\tLAST USED")
	for _, c := range credentials {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.ClientID, orDash(c.Name), c.Account, c.Status,
			strings.Join(c.Scopes, " "), c.Created, orDash(c.Expires), orDash(c.LastUsed))
	}
	return table.Flush()
}

func printCredential(w io.Writer, text []byte) error {
	var c credential
	if err := read(text, &c); err != nil {
		return err
	}
	grantable := strings.Join(c.Grantable, " ")
	if c.Grantable != nil && grantable == "" {
		grantable = "nothing"
	}
	keys := ""
	if c.JWKS != nil {
		keys = strconv.Itoa(len(c.JWKS.Keys))
	}
	if c.Declared {
		c.CreatedBy = "the configuration"
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, line := range []struct{ name, value string }{
		{"client id", c.ClientID},
		{"credential id", c.CredentialID},
		{"name", orDash(c.Name)},
		{"account", c.Account},
		{"status", c.Status},
		{"scopes", strings.Join(c.Scopes, " ")},
		{"audiences", strings.Join(c.Audiences, " ")},
		{"grantable", grantable},
		{"token lifetime", c.TokenLifetime},
		{"tokens per hour", orNoLimit(c.TokensPerHour)},
		{"requests per second", orNoLimit(c.RequestsPerSecond)},
		{"claims", string(c.Claims)},
		{"keys", keys},
		{"keys at", c.JWKSURI},
		{"created by", c.CreatedBy},
		{"created", c.Created},
		{"expires", orDash(c.Expires)},
		{"last used", orDash(c.LastUsed)},
	} {
		if line.value == "" {
			line.value = "-"
		}
		fmt.Fprintf(table, "%s\t%s\n", line.name, line.value)
	}
	return table.Flush()
}

func orNoLimit(n int) string {
	if n == 0 {
		return "no limit"
	}
	return strconv.Itoa(n)
}
