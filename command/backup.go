package command

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/clientcredentials/caddy-client-credentials/handler"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

func backupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup <file>",
		Short: "Writes all that the store holds into a new file",
		Long: `
Writes all that the store holds, as it is at one moment, into a new file for its
owner only. The server goes on meanwhile. A file of that name appears when all of
it was checked and is on the disk, and never takes the place of another: put the
date into the name.

The backup does not hold the master key, which opens the signing keys and lets
the secrets be checked. Keep that in another place: see export-key.`,
		Args: cobra.ExactArgs(1),
	}
	runPlain(cmd, func(cmd *cobra.Command, fl caddycmd.Flags, args []string) error {
		if err := issuer.RequireNewFile(args[0]); err != nil {
			return err
		}
		source, err := openBackup(fl)
		if err != nil {
			return err
		}
		defer source.Close()
		contents, err := issuer.SaveBackup(args[0], io.TeeReader(source, &progress{w: cmd.ErrOrStderr()}))
		if err != nil {
			return err
		}
		return printContents(cmd.OutOrStdout(), contents)
	})
	return cmd
}

func verifyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "verify <file>",
		Short: "Checks that a backup is whole, and shows what it holds",
		Args:  cobra.ExactArgs(1),
	}
	runPlain(cmd, func(cmd *cobra.Command, _ caddycmd.Flags, args []string) error {
		file, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		contents, err := issuer.ReadBackup(io.TeeReader(file, &progress{w: cmd.ErrOrStderr()}))
		if err != nil {
			return fmt.Errorf("%s: %w", args[0], err)
		}
		return printContents(cmd.OutOrStdout(), contents)
	})
	return cmd
}

func restoreCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "restore [--lost <directory>] [--without-master-key] <file>",
		Short: "Writes a backup into the configuration's store, which has to be empty",
		Long: `
Checks a backup, and then writes it into the store of the configuration, which
has to be empty. No server may hold it: a database that one has open is refused.
All tokens from before are refused afterwards; clients get new ones with the
secrets that they have.

Credentials that were revoked after the backup work again. With --lost, which
names the directory of the store that was lost, if it can still be read, those
are revoked again, and all are named that are not as they were.

If a restore is interrupted, the server refuses the store until it was run again.`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().String("lost", "", "Directory of the badger store that the backup takes the place of")
	cmd.Flags().Bool("without-master-key", false, "Restore though the master key is lost; then run replace-lost-master-key")
	runPlain(cmd, func(cmd *cobra.Command, fl caddycmd.Flags, args []string) error {
		app, err := configuredApp(fl)
		if err != nil {
			return err
		}
		opts := issuer.RestoreOptions{WithoutMasterKey: fl.Bool("without-master-key")}
		if lost := fl.String("lost"); lost != "" {
			if opts.Lost, err = loadLost(fl, lost); err != nil {
				return err
			}
		}
		file, err := os.Open(args[0])
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		watched := watchedFile{file, &progress{w: cmd.ErrOrStderr()}}
		restored, err := app.Restore(context.Background(), watched, opts)
		if err != nil {
			return err
		}
		record(app, issuer.Change{Action: issuer.StoreRestored})
		for _, c := range restored.RevokedAgain {
			record(app, issuer.Change{Action: issuer.CredentialRevoked, ClientID: c.ClientID, Account: c.Account})
		}
		return printRestored(cmd.OutOrStdout(), restored, opts.Lost != nil)
	})
	return cmd
}

func copyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "copy --from <file> [--from-adapter <name>] --to <file> [--to-adapter <name>]",
		Short: "Copies the store of one configuration into the empty one of another",
		Long: `
Copies all that the store of a configuration holds into the one of another
configuration, which has to be empty: to another place, or to another kind of
store. No server may hold either of them; where one has the database open that is
copied into, it is refused. Both configurations need the same master key.

In the end both stores are read again and have to hold the same: the number of
records and the SHA-256 of all are printed. Until then no server takes the copy.
If it is interrupted, run it again: it goes on where it was.

Tokens live on in the copy. Use only one of the stores from then on: what is
revoked in one of them still works in the other.`,
		Args: cobra.NoArgs,
	}
	for flag, what := range map[string]string{"from": "copy", "to": "copy into"} {
		cmd.Flags().String(flag, "", "Configuration file with the store to "+what)
		cmd.Flags().String(flag+"-adapter", "", "Name of config adapter to apply to it")
		_ = cmd.MarkFlagRequired(flag)
	}
	runPlain(cmd, func(cmd *cobra.Command, fl caddycmd.Flags, _ []string) error {
		from, err := offlineApp(fl.String("from"), fl.String("from-adapter"), nil)
		if err != nil {
			return err
		}
		to, err := offlineApp(fl.String("to"), fl.String("to-adapter"), nil)
		if err != nil {
			return err
		}
		copied, err := from.CopyTo(context.Background(), to, (&progress{w: cmd.ErrOrStderr()}).add)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "copied, and both hold the same: %d records, SHA-256 %x\nLet no server use the first store again.\n", copied.Records, copied.Sum)
		return err
	})
	return cmd
}

// openBackup returns a backup of the server, or with --offline of the store.
func openBackup(fl caddycmd.Flags) (io.ReadCloser, error) {
	if !fl.Bool("offline") {
		s, err := findServer(fl)
		if err != nil {
			return nil, err
		}
		return s.stream(http.MethodGet, handler.AdminBackupPath, nil)
	}
	app, err := configuredApp(fl)
	if err != nil {
		return nil, err
	}
	r, w := io.Pipe()
	go func() { _ = w.CloseWithError(app.WriteBackup(context.Background(), w)) }()
	return r, nil
}

func loadLost(fl caddycmd.Flags, dir string) (*issuer.App, error) {
	if _, err := os.Stat(filepath.Join(dir, "MANIFEST")); err != nil {
		return nil, fmt.Errorf("the lost store: %s has none: %w", dir, err) // one would be made there, else
	}
	engine, err := json.Marshal(map[string]string{"module": "badger", "path": dir})
	if err != nil {
		return nil, err
	}
	return offlineApp(configFile(fl, true), fl.String("adapter"), engine)
}

// progress says each second how many bytes were written to it, or added.
type progress struct {
	w     io.Writer
	bytes int
	told  time.Time
}

func (p *progress) Write(b []byte) (int, error) {
	p.add(len(b))
	return len(b), nil
}

func (p *progress) add(bytes int) {
	if p.told.IsZero() {
		p.told = time.Now()
	}
	p.bytes += bytes
	if time.Since(p.told) >= time.Second {
		p.told = time.Now()
		fmt.Fprintf(p.w, "%.1f MB\n", float64(p.bytes)/1e6)
	}
}

// watchedFile tells the progress what is read of it.
type watchedFile struct {
	*os.File
	progress *progress
}

func (f watchedFile) Read(b []byte) (int, error) {
	n, err := f.File.Read(b)
	f.progress.add(n)
	return n, err
}

func printContents(w io.Writer, c *issuer.BackupContents) error {
	_, err := fmt.Fprintf(w, "made          %s\ncredentials   %d active, %d expired, %d revoked\nsigning keys  %d\nmaster key    %s\n",
		made(c), c.Active, c.Expired, c.Revoked, c.SigningKeys, c.MasterKey)
	return err
}

func made(c *issuer.BackupContents) string { return c.Made.Format(time.RFC3339) }

func printRestored(w io.Writer, r *issuer.Restored, compared bool) error {
	if err := printContents(w, r.BackupContents); err != nil {
		return err
	}
	fmt.Fprintf(w, "\nAll tokens from before are refused, and another key will sign.\n")
	if !compared {
		_, err := fmt.Fprintf(w, "Credentials that were revoked after %s work again: revoke them once more. "+
			"The audit log has\n%q with the client_id of each. Those that were created after it are gone.\n", made(r.BackupContents), issuer.CredentialRevoked)
		return err
	}
	printCredentials(w, "Revoked again, as they were after the backup:", r.RevokedAgain)
	printCredentials(w, "Changed after the backup, and now as they were in it:", r.Changed)
	printCredentials(w, "Unknown to the lost store, and working again; revoke those that should not:", r.Missing)
	if len(r.Gone) > 0 {
		fmt.Fprintf(w, "Created after the backup, and gone:\n  %s\n", strings.Join(r.Gone, "\n  "))
	}
	return nil
}

func printCredentials(w io.Writer, what string, credentials []*issuer.Credential) {
	if len(credentials) == 0 {
		return
	}
	fmt.Fprintln(w, what)
	for _, c := range credentials {
		fmt.Fprintf(w, "  %s  %s\n", c.ClientID, orDash(c.Name))
	}
}
