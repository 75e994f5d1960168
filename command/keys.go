package command

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/clientcredentials/caddy-client-credentials/handler"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

func keysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "keys [--json]",
		Short: "Lists the signing keys and what each is for now",
		Args:  cobra.NoArgs,
	}
	cmd.Flags().Bool("json", false, "Print a JSON array")
	run(cmd, func(cmd *cobra.Command, m manager, _ []string) error {
		keys, err := ask(m, http.MethodGet, handler.AdminKeysPath, nil)
		if err != nil {
			return err
		}
		return printKeys(cmd.OutOrStdout(), keys, caddycmd.Flags{FlagSet: cmd.Flags()}.Bool("json"))
	})
	return cmd
}

func rotateKeyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rotate-key",
		Short: "Publishes a new signing key, which signs as soon as everybody may know it",
		Args:  cobra.NoArgs,
	}
	runPlain(cmd, func(cmd *cobra.Command, fl caddycmd.Flags, _ []string) error {
		if fl.Bool("offline") {
			return misused("a key has to be published for a while before it signs, so this needs a running server")
		}
		s, err := findServer(fl)
		if err != nil {
			return err
		}
		text, err := ask(s, http.MethodPost, handler.AdminKeysPath, nil)
		if err != nil {
			return err
		}
		var key issuer.Key
		if err := json.Unmarshal(text, &key); err != nil {
			return fmt.Errorf("reading the server's answer: %w", err)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "published %s, which signs from about %s, while the server runs\n", key.ID, key.Changes.Format(time.RFC3339))
		return err
	})
	return cmd
}

func revokeKeyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revoke-key <kid>",
		Short: "Refuses every token that a signing key has signed, at once; where it signs, another takes its place",
		Long: `
Refuses every token that a signing key has signed, at once; where it signs,
another takes its place. A key that was not made here may have an id that begins
with a dash. That goes behind two of them, which end the flags:

	caddy client-credentials revoke-key -- -rest-of-the-id`,
		Args: cobra.ExactArgs(1),
	}
	run(cmd, func(cmd *cobra.Command, m manager, args []string) error {
		if _, err := ask(m, http.MethodDelete, handler.AdminKeysPath+"/"+segment(args[0]), nil); err != nil {
			return err
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "revoked", args[0])
		return err
	})
	return cmd
}

func rewrapCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rewrap [--to <file>]",
		Short: "Replaces the master key, and seals the store with the new one",
		Long: `
Replaces the master key, and seals the store with the new one. One that Caddy's
storage keeps is made and kept there. One that the configuration brings by
master_key is read from the file given by --to, and must be in the configuration
before that is loaded again. Backups that were made before open with the master
key of then: keep it by export-key, or make a new backup. For example:

	openssl rand -base64 32 > new_master_key
	caddy client-credentials rewrap --to new_master_key`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().String("to", "", "The file with the new master key: 32 bytes in base64")
	run(cmd, func(cmd *cobra.Command, m manager, _ []string) error {
		var to handler.NewMasterKey
		if file := (caddycmd.Flags{FlagSet: cmd.Flags()}).String("to"); file != "" {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			if to.Key = strings.TrimSpace(string(text)); to.Key == "" { // it would ask for one of the server's
				return fmt.Errorf("%s is empty: make a key with: openssl rand -base64 32", file)
			}
		}
		if _, err := ask(m, http.MethodPost, handler.AdminMasterKeyPath, to); err != nil {
			return err
		}
		if to.Key == "" {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "replaced the master key in Caddy's storage")
			return err
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), "replaced the master key: set master_key to it before the configuration is loaded again")
		return err
	})
	return cmd
}

func replaceLostMasterKeyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "replace-lost-master-key",
		Short: "Begins anew with a master key when the one is lost that the store was sealed with",
		Long: `
Begins anew with the master key of the configuration, or with one that is made in
Caddy's storage, when the one is lost that the store was sealed with. What was
sealed is lost with it: the secrets that this server has hashed stop working, and
another key signs. Credentials stay, tokens stay valid until they expire, and
clients go on that authenticate by keys of their own, or by secrets that are kept
by another server's hash. It opens the store itself, so no server may hold it, and
prints the credentials that need a new secret: see rotate-secret.`,
		Args: cobra.NoArgs,
	}
	runPlain(cmd, func(cmd *cobra.Command, fl caddycmd.Flags, _ []string) error {
		app, err := configuredApp(fl)
		if err != nil {
			return err
		}
		lost, err := app.ReplaceLostMasterKey(context.Background())
		if err != nil {
			return err
		}
		record(app, issuer.Change{Action: issuer.MasterKeyReplaced})
		fmt.Fprintf(cmd.OutOrStdout(), "The secrets of these %d credentials work no more. Give each a new one: rotate-secret.\n", len(lost))
		list, err := json.Marshal(handler.AdminList(lost))
		if err != nil {
			return err
		}
		return printList(cmd.OutOrStdout(), list)
	})
	return cmd
}

func printKeys(w io.Writer, list []byte, asJSON bool) error {
	if asJSON {
		_, err := fmt.Fprintf(w, "%s\n", list)
		return err
	}
	var keys []issuer.Key
	if err := json.Unmarshal(list, &keys); err != nil {
		return fmt.Errorf("reading the server's answer: %w", err)
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "KID\tALGORITHM\tPHASE\tCREATED\tCHANGES")
	for _, key := range keys {
		changes := "-"
		switch {
		case key.Changes.IsZero():
		case key.Phase == issuer.KeyNext:
			changes = "signs from " + key.Changes.Format(time.RFC3339)
		case key.Phase == issuer.KeyRetired:
			changes = "verifies until " + key.Changes.Format(time.RFC3339)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", key.ID, key.Algorithm, key.Phase, key.Created.Format(time.RFC3339), changes)
	}
	return table.Flush()
}
