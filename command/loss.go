package command

import (
	"context"
	"fmt"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

func acceptLossCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "accept-loss",
		Short: "Makes a damaged store open again, with what is left of it",
		Long: `
Makes a store open again that refuses to, because it is damaged, or has lost
changes that were acknowledged. No server may hold it. To restore a backup is
better: here nobody can tell all that is lost.

It says what is missing, as far as that can be told. As that may be revocations,
it ends every token, and has the server make new signing keys: clients get new
tokens. A credential whose revocation is lost works again: look through the list,
and revoke it once more.`,
		Args: cobra.NoArgs,
	}
	runPlain(cmd, func(cmd *cobra.Command, fl caddycmd.Flags, _ []string) error {
		app, err := configuredApp(fl)
		if err != nil {
			return err
		}
		lost, err := app.AcceptLoss(context.Background())
		for _, what := range lost {
			fmt.Fprintln(cmd.OutOrStdout(), "lost:", what)
		}
		if err != nil {
			return err
		}
		record(app, issuer.Change{Action: issuer.StoreMended})
		_, err = fmt.Fprintln(cmd.OutOrStdout(), "The store opens again. All tokens are ended, and the signing keys will be new.")
		return err
	})
	return cmd
}
