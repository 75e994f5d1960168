// Package command is the command line: caddy client-credentials.
package command

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/clientcredentials/caddy-client-credentials/handler"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "client-credentials",
		Usage: "<create|list|show|update|disable|enable|revoke|rotate-secret|secrets|delete-secret|check-token|keys|rotate-key|revoke-key|rewrap|replace-lost-master-key|export-key|import-key|backup|verify|restore|copy|import|export|hash-secret|accept-loss>",
		Short: "Manages the credentials of machine clients",
		Long: `
Creates, changes and revokes the credentials that the client_credentials app
keeps, and says why a token is refused. The first one of a new server is made
here, for example:

	caddy client-credentials create --name ops --scope client-credentials:write

The commands talk to the running Caddy through its admin endpoint at
--address, or where the configuration (--config, --adapter) has it. With
--offline they open the store of the configuration themselves; the embedded one
only while no server holds it. Those that move the store or its master key, or
mend it, do so always: restore, copy, export-key, import-key, accept-loss and
replace-lost-master-key.

They end with status 0 where all was done; 1 where it failed; 2 where a flag or a
value is wrong; 3 where there is no such credential, secret or key; and 4 where it
is refused: as things are, or because it was not confirmed.`,
		CobraFunc: func(cmd *cobra.Command) {
			cmd.PersistentFlags().String("address", "", "Address of the administration API listener (if --config is not used)")
			cmd.PersistentFlags().StringP("config", "c", "", "Configuration file (default: the Caddyfile in this directory, if there is one)")
			cmd.PersistentFlags().StringP("adapter", "a", "", "Name of config adapter to apply (if --config is used)")
			cmd.PersistentFlags().Bool("offline", false, "Open the store itself; no server may hold it")
			cmd.AddCommand(createCommand(), listCommand(), showCommand(), updateCommand(), enabledCommand("disable", false), enabledCommand("enable", true),
				revokeCommand(), rotateSecretCommand(), secretsCommand(), deleteSecretCommand(), checkCommand(),
				keysCommand(), rotateKeyCommand(), revokeKeyCommand(), rewrapCommand(), replaceLostMasterKeyCommand(), exportKeyCommand(), importKeyCommand(),
				backupCommand(), verifyCommand(), restoreCommand(), copyCommand(), importCommand(), exportCommand(), hashSecretCommand(), acceptLossCommand())
			cmd.RunE = func(cmd *cobra.Command, args []string) error {
				if len(args) == 0 {
					return cmd.Help()
				}
				return endWith(cmd, misused("there is no command %q: see caddy client-credentials --help", args[0]))
			}
			reportMisuse(cmd)
		},
	})
}

// manager answers as the admin API does: a running server, or a store.
type manager interface {
	request(method, path string, body []byte) ([]byte, error)
	importLines(lines io.Reader, try bool, report func(handler.ImportedLine) error) error
	exportLines(w io.Writer) error
}

// ask sends a request with a body in JSON, or without one where it is nil.
func ask(m manager, method, path string, body any) ([]byte, error) {
	var text []byte
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	return m.request(method, path, text)
}

func run(cmd *cobra.Command, do func(*cobra.Command, manager, []string) error) {
	runPlain(cmd, func(cmd *cobra.Command, fl caddycmd.Flags, args []string) error {
		m, done, err := open(fl)
		if err != nil {
			return err
		}
		defer done()
		return do(cmd, m, args)
	})
}

func runPlain(cmd *cobra.Command, do func(*cobra.Command, caddycmd.Flags, []string) error) {
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return caddycmd.WrapCommandFuncForCobra(func(fl caddycmd.Flags) (int, error) {
			if err := do(cmd, fl, args); err != nil {
				return codeOf(err), err
			}
			return 0, nil
		})(cmd, args)
	}
}

func open(fl caddycmd.Flags) (m manager, done func(), err error) {
	if fl.Bool("offline") {
		return openOffline(configFile(fl, true), fl.String("adapter"))
	}
	s, err := findServer(fl)
	return s, func() {}, err
}

func findServer(fl caddycmd.Flags) (server, error) {
	address, err := caddycmd.DetermineAdminAPIAddress(fl.String("address"), nil, configFile(fl, false), fl.String("adapter"))
	if err != nil {
		return server{}, fmt.Errorf("couldn't determine the admin API's address: %w", err)
	}
	return server{address}, nil
}

// configFile returns the configuration that is meant: the Caddyfile here, where
// none is named and it is needed.
func configFile(fl caddycmd.Flags, offline bool) string {
	config := fl.String("config")
	if config == "" && (offline || fl.String("address") == "") {
		if _, err := os.Stat("Caddyfile"); err == nil {
			return "Caddyfile"
		}
	}
	return config
}

// server is a running Caddy, by the address of its admin endpoint.
type server struct{ address string }

func (s server) request(method, path string, body []byte) ([]byte, error) {
	var sent io.Reader
	if body != nil {
		sent = bytes.NewReader(body)
	}
	answer, err := s.stream(method, path, sent)
	if err != nil {
		return nil, err
	}
	defer answer.Close()
	return io.ReadAll(answer)
}

// stream sends a request and returns the body of the answer.
func (s server) stream(method, path string, body io.Reader) (io.ReadCloser, error) {
	resp, err := caddycmd.AdminAPIRequest(s.address, method, path, make(http.Header), body)
	if err != nil && strings.HasPrefix(err.Error(), "performing request") { // it is of no type
		return nil, fmt.Errorf("no Caddy answers at %s: name its admin endpoint by --address or --config, "+
			"or, if none runs, use --offline: %w", s.address, err)
	}
	if err != nil {
		return nil, refusal(err)
	}
	return resp.Body, nil
}

// refusal returns what an answer of the admin endpoint says that AdminAPIRequest
// has made an error of, again one of no type.
func refusal(err error) error {
	var status int
	if _, scanErr := fmt.Sscanf(err.Error(), "caddy responded with error: HTTP %d:", &status); scanErr != nil {
		return err
	}
	var answer struct{ Error string }
	_, text, _ := strings.Cut(err.Error(), "HTTP "+strconv.Itoa(status)+": ")
	if json.Unmarshal([]byte(text), &answer) != nil || answer.Error == "" { // it knows no such path
		return fmt.Errorf("the Caddy that answers is of another release than this one, or without this module: %w", err)
	}
	return &failure{exitCode(status), errors.New(answer.Error)}
}

func orDash(s *string) string {
	if s == nil {
		return "-"
	}
	return *s
}
