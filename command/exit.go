package command

import (
	"errors"
	"fmt"
	"net/http"
	"slices"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

// The exit codes, beside 0.
const (
	exitFailed   = 1 // it could not be done, or nobody can tell
	exitMisused  = 2 // a flag, an argument or a value is wrong
	exitNotFound = 3
	exitRefused  = 4 // as things are, or because it was not confirmed
)

// failure is an error with the exit code that tells it from others.
type failure struct {
	code int
	err  error
}

func (f *failure) Error() string { return f.err.Error() }

func (f *failure) Unwrap() error { return f.err }

func misused(format string, args ...any) error {
	return &failure{exitMisused, fmt.Errorf(format, args...)}
}

// exitCode returns that for a status with which the admin API has refused.
func exitCode(status int) int {
	switch status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		return exitMisused
	case http.StatusNotFound:
		return exitNotFound
	case http.StatusConflict:
		return exitRefused
	}
	return exitFailed
}

func codeOf(err error) int {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.code
	}
	return exitFailed
}

// endWith reports an error as Caddy does.
func endWith(cmd *cobra.Command, err error) error {
	return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) { return codeOf(err), err })(cmd, nil)
}

// reportMisuse gives the errors of cobra itself their exit code, in all commands.
func reportMisuse(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return endWith(cmd, misused("%w: see %s --help", err, cmd.CommandPath()))
	})
	for _, sub := range cmd.Commands() {
		check := sub.Args
		sub.Args = func(cmd *cobra.Command, args []string) error {
			err := check(cmd, args)
			if err == nil && slices.Contains(args, "") {
				err = errors.New("an argument is empty")
			}
			if err != nil {
				return endWith(cmd, misused("%w: see %s --help", err, cmd.CommandPath()))
			}
			return nil
		}
	}
}
