package command

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/clientcredentials/caddy-client-credentials/handler"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

func importCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "import [--dry-run] [--json] <file>",
		Short: "Keeps credentials that another server has made",
		Long: `
Reads a file with a JSON object in each line, or standard input where the file is
"-", and keeps the credential of each. Clients go on with the client id and the
secret that they have. For example:

	{"clientId": "orders", "scopes": ["items:read"], "secrets": ["$2a$10$…"]}

The members are those of the API, and clientId, created, and of the secrets either
"secrets" with their hashes, PHC strings of bcrypt, argon2id, scrypt or PBKDF2, or
"secret" with the one in the clear. A line is kept whole or not at all; the others
do not depend on it. A client id that there is already is left as it is.

It ends with status 1 where a line was not kept, and says which and why.`,
		Args: cobra.ExactArgs(1),
	}
	cmd.Flags().Bool("dry-run", false, "Keep nothing: only say what would not be kept, and why")
	cmd.Flags().Bool("json", false, "Print a JSON object for each line of the file")
	run(cmd, func(cmd *cobra.Command, m manager, args []string) error {
		lines := cmd.InOrStdin()
		if args[0] != "-" {
			file, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer func() { _ = file.Close() }()
			lines = file
		}
		fl := caddycmd.Flags{FlagSet: cmd.Flags()}
		report := &importReport{out: cmd.OutOrStdout(), progress: cmd.ErrOrStderr(), json: fl.Bool("json"), told: time.Now()}
		if err := m.importLines(lines, fl.Bool("dry-run"), report.add); err != nil {
			return err
		}
		return report.end(fl.Bool("dry-run"))
	})
	return cmd
}

func exportCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Prints the credentials that have not ended, as import reads them",
		Long: `
Prints a JSON object for each credential that has not ended, in a line of its own,
with the hashes of its secrets. Those that this server has made can only be used
by one that has its pepper, which is in the store: to move everything, use backup
and restore, or copy.`,
		Args: cobra.NoArgs,
	}
	run(cmd, func(cmd *cobra.Command, m manager, _ []string) error {
		return m.exportLines(cmd.OutOrStdout())
	})
	return cmd
}

// importReport tells what has become of the lines of an import.
type importReport struct {
	out, progress io.Writer
	json          bool
	kept, failed  int
	told          time.Time
}

func (r *importReport) add(line handler.ImportedLine) error {
	if line.Error == "" {
		r.kept++
	} else {
		r.failed++
	}
	if now := time.Now(); now.Sub(r.told) >= time.Second {
		r.told = now
		fmt.Fprintf(r.progress, "%d lines\n", r.kept+r.failed)
	}
	var err error
	switch {
	case r.json:
		err = json.NewEncoder(r.out).Encode(line)
	case line.Error != "" && line.ClientID != "":
		_, err = fmt.Fprintf(r.out, "line %d, %s: %s\n", line.Line, line.ClientID, line.Error)
	case line.Error != "":
		_, err = fmt.Fprintf(r.out, "line %d: %s\n", line.Line, line.Error)
	}
	return err
}

func (r *importReport) end(try bool) error {
	done := "imported"
	if try {
		done = "could be imported"
	}
	if !r.json {
		fmt.Fprintf(r.out, "%d %s\n", r.kept, done)
	}
	if r.failed > 0 {
		return fmt.Errorf("%d of %d lines were not kept", r.failed, r.kept+r.failed)
	}
	return nil
}

func (s server) importLines(lines io.Reader, try bool, report func(handler.ImportedLine) error) error {
	path := handler.AdminImportPath
	if try {
		path += "?dryRun=true"
	}
	answer, err := s.stream(http.MethodPost, path, lines)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Close() }()
	decoder := json.NewDecoder(bufio.NewReader(answer))
	for {
		var line handler.ImportedLine
		switch err := decoder.Decode(&line); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("reading the server's report: %w", err)
		}
		if err := report(line); err != nil {
			return err
		}
	}
}

func (s server) exportLines(w io.Writer) error {
	answer, err := s.stream(http.MethodGet, handler.AdminExportPath, nil)
	if err != nil {
		return err
	}
	defer func() { _ = answer.Close() }()
	_, err = io.Copy(w, answer)
	return err
}

func (o offline) importLines(lines io.Reader, try bool, report func(handler.ImportedLine) error) error {
	iss, err := o.app.Open()
	if err != nil {
		return err
	}
	return handler.ImportLines(context.Background(), iss, lines, try, func(line handler.ImportedLine) error {
		if line.Error == "" && !try {
			record(o.app, issuer.Change{Action: issuer.CredentialImported, ClientID: line.ClientID})
		}
		return report(line)
	})
}

func (o offline) exportLines(w io.Writer) error {
	iss, err := o.app.Open()
	if err != nil {
		return err
	}
	return handler.ExportLines(context.Background(), iss, w)
}
