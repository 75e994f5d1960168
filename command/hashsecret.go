package command

import (
	"errors"
	"fmt"
	"io"
	"strings"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

func hashSecretCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "hash-secret [--stdin]",
		Short: "Makes a secret and its hash, for a credential of the Caddyfile",
		Long: `
Makes a new secret, and the line with its hash for a credential that the Caddyfile
declares. The secret is for the client, and shown this once. With --stdin, the
secret is read from standard input, and only its line is printed:

	printf %s "$SECRET" | caddy client-credentials hash-secret --stdin`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().Bool("stdin", false, "Read the secret from standard input")
	runPlain(cmd, func(cmd *cobra.Command, fl caddycmd.Flags, _ []string) error {
		if !fl.Bool("stdin") {
			secret := issuer.NewSecret()
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "secret       %s\nsecret_hash  %s\n", secret, issuer.HashSecret(secret))
			return err
		}
		text, err := io.ReadAll(io.LimitReader(cmd.InOrStdin(), maxSecretInput+1))
		if err != nil {
			return err
		}
		secret := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
		if secret == "" || len(secret) > maxSecretInput || strings.ContainsAny(secret, "\r\n") {
			return errors.New("standard input is not one secret, in one line")
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "secret_hash  %s\n", issuer.HashSecret(secret))
		return err
	})
	return cmd
}

const maxSecretInput = 4 << 10 // bytes
