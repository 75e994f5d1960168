package command

import (
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"

	"github.com/caddyserver/caddy/v2"
	"github.com/spf13/cobra"
)

func rotateSecretCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate-secret <client id> [--overlap <duration>] [--yes] [--json]",
		Short: "Adds a secret to a credential and shows it, once; the earlier ones end soon",
		Long: `
Adds a secret to a credential and shows it, once. The earlier ones work beside it
for the time of --overlap. With --overlap 0s, which is for a secret that has
leaked, they end at once, and with them every token that the credential has
obtained; it asks before that.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeClient,
	}
	cmd.Flags().String("overlap", "24h", "How long the earlier secrets go on working")
	cmd.Flags().Bool("json", false, "Print exactly the JSON object that the API answers")
	addYesFlag(cmd)
	run(cmd, func(cmd *cobra.Command, m manager, args []string) error {
		overlap, err := cmd.Flags().GetString("overlap")
		if err != nil {
			return err
		}
		length, err := caddy.ParseDuration(overlap)
		if err != nil {
			return misused("--overlap is no duration, such as 24h or 0s")
		}
		if length == 0 {
			if err := confirm(cmd, "this ends all secrets and tokens of "+args[0], "yes"); err != nil {
				return err
			}
		}
		added, err := ask(m, http.MethodPost, secretsPath(args[0]), map[string]string{"overlap": overlap})
		if err != nil {
			return err
		}
		return output(cmd, added, func(w io.Writer, added []byte) error { return printAdded(w, added, overlap, length == 0) })
	})
	return cmd
}

func secretsCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "secrets <client id> [--json]",
		Short:             "Lists the secrets of a credential that work, with their last characters",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeClient,
	}
	cmd.Flags().Bool("json", false, "Print a JSON array")
	run(cmd, func(cmd *cobra.Command, m manager, args []string) error {
		list, err := ask(m, http.MethodGet, secretsPath(args[0]), nil)
		if err != nil {
			return err
		}
		return output(cmd, list, printSecrets)
	})
	return cmd
}

func deleteSecretCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "delete-secret <client id> <secret id> [--yes]",
		Short:             "Ends a secret of a credential, and every token that the credential has obtained, at once",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: completeSecret,
	}
	addYesFlag(cmd)
	run(cmd, func(cmd *cobra.Command, m manager, args []string) error {
		if err := confirm(cmd, "this ends a secret of "+args[0]+", and all tokens", "yes"); err != nil {
			return err
		}
		if _, err := ask(m, http.MethodDelete, secretsPath(args[0])+"/"+segment(args[1]), nil); err != nil {
			return err
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "deleted", args[1])
		return err
	})
	return cmd
}

func secretsPath(clientID string) string { return credentialPath(clientID) + "/secrets" }

// secret is what the commands read of one.
type secret struct {
	ID, Secret, Created     string
	Hint, Expires, LastUsed *string
}

func printAdded(w io.Writer, added []byte, overlap string, atOnce bool) error {
	var s secret
	if err := read(added, &s); err != nil {
		return err
	}
	earlier := "The earlier ones work for " + overlap + " more."
	if atOnce {
		earlier = "The earlier ones have ended, and so have all tokens."
	}
	_, err := fmt.Fprintf(w, "secret id  %s\nsecret     %s\n\nThe secret is shown this once; it can't be read again. %s\n", s.ID, s.Secret, earlier)
	return err
}

func printSecrets(w io.Writer, list []byte) error {
	var secrets []secret
	if err := read(list, &secrets); err != nil {
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "SECRET ID\tHINT\tCREATED\tEXPIRES\tLAST USED")
	for _, s := range secrets {
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", s.ID, orDash(s.Hint), s.Created, orDash(s.Expires), orDash(s.LastUsed))
	}
	return table.Flush()
}
