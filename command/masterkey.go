package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

func exportKeyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export-key [<file>]",
		Short: "Shows the master key, or writes it into a new file",
		Long: `
Shows the master key of the configuration in base64, or writes it into a new file
for its owner only. A backup is worth little without it, and whoever has both can
forge tokens: keep them in different places.`,
		Args: cobra.MaximumNArgs(1),
	}
	runPlain(cmd, func(cmd *cobra.Command, fl caddycmd.Flags, args []string) error {
		app, err := configuredApp(fl)
		if err != nil {
			return err
		}
		key, id, err := app.ExportMasterKey(context.Background())
		if err != nil {
			return err
		}
		unfinished, err := app.UnfinishedMasterKey(context.Background())
		if err != nil {
			return err
		}
		if unfinished != "" {
			fmt.Fprintf(cmd.ErrOrStderr(), "A replacement of the master key was cut short, and the store may be sealed with master key %s instead:\n"+
				"start the server, and then export the key that backups name.\n", unfinished)
		}
		if len(args) > 0 {
			if err := writeNew(args[0], key+"\n"); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "wrote master key %s\n", id)
			return err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "This is master key %s: whoever has it and the store, or a backup, can forge tokens.\n", id)
		_, err = fmt.Fprintln(cmd.OutOrStdout(), key)
		return err
	})
	return cmd
}

func importKeyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import-key [<file>]",
		Short: "Puts a master key into Caddy's storage, from a file or from standard input",
		Long: `
Puts a master key, 32 bytes in base64, into Caddy's storage. It takes the place
of another one only where the store holds nothing that this one has sealed; the
other one is kept beside it.`,
		Args: cobra.MaximumNArgs(1),
	}
	runPlain(cmd, func(cmd *cobra.Command, fl caddycmd.Flags, args []string) error {
		app, err := configuredApp(fl)
		if err != nil {
			return err
		}
		in := cmd.InOrStdin()
		if len(args) > 0 {
			file, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer func() { _ = file.Close() }()
			in = file
		}
		text, err := io.ReadAll(io.LimitReader(in, maxKeyInput))
		if err != nil {
			return err
		}
		id, err := app.ImportMasterKey(context.Background(), string(text))
		if err != nil {
			return err
		}
		record(app, issuer.Change{Action: issuer.MasterKeyImported})
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "Caddy's storage has master key %s\n", id)
		return err
	})
	return cmd
}

// maxKeyInput is more than a key in base64 has, in bytes.
const maxKeyInput = 1 << 10

// writeNew writes a new file for its owner only.
func writeNew(name, text string) error {
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = file.WriteString(text)
	if err = errors.Join(err, file.Sync(), file.Close()); err != nil {
		_ = os.Remove(name) // a part of a key is none
	}
	return err
}
