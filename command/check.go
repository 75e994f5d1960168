package command

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/clientcredentials/caddy-client-credentials/handler"
)

func checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check-token [--audience <audience>] [--scope <scope>]... [--json]",
		Short: "Reads a token from standard input and says whether a guard would accept it, and if not, why",
		Long: `
Reads a token from standard input and says whether a guard would accept it now,
and if not, why. The guard is one that asks for --audience and for every --scope;
without them, for the audience of the configuration and no scope. For example:

	echo "$TOKEN" | caddy client-credentials check-token --scope items:read

It ends with status 4 where the token would be refused.`,
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
			return misused("there is no token on standard input")
		}
		fl := caddycmd.Flags{FlagSet: cmd.Flags()}
		verdict, err := ask(m, http.MethodPost, handler.AdminCheckPath, handler.TokenCheck{Token: token, Audience: fl.String("audience"), Scopes: *scopes})
		if err != nil {
			return err
		}
		return printVerdict(cmd.OutOrStdout(), verdict, fl.Bool("json"))
	})
	return cmd
}

// maxTokenInput is more than any token has that a guard would read, in bytes.
const maxTokenInput = 32 << 10

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
		return &failure{exitRefused, fmt.Errorf("the token would be refused: %s", v.Reason)}
	}
	if asJSON {
		return nil
	}
	_, err := fmt.Fprintf(w, "accepted\nclient id  %s\njti        %s\nscopes     %s\naudiences  %s\nexpires    %s\n",
		v.ClientID, v.ID, v.Scope, strings.Join(v.Audience, " "), v.Expires)
	return err
}
