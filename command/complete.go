package command

import (
	"encoding/json"
	"net/http"
	"slices"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/clientcredentials/caddy-client-credentials/handler"
)

// completeClient completes the client id as the only argument.
func completeClient(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return completeFrom(cmd, handler.AdminCredentialsPath, func(c credential) cobra.Completion {
		return cobra.CompletionWithDesc(c.ClientID, c.Account+" "+orDash(c.Name))
	})
}

// completeSecret completes a client id and one of that credential's secrets.
func completeSecret(cmd *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) != 1 {
		return completeClient(cmd, args, toComplete)
	}
	return completeFrom(cmd, secretsPath(args[0]), func(s secret) cobra.Completion {
		return cobra.CompletionWithDesc(s.ID, "created "+s.Created)
	})
}

func completeAccount(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return completeFrom(cmd, handler.AdminCredentialsPath, func(c credential) cobra.Completion { return c.Account })
}

func completeCreator(cmd *cobra.Command, _ []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return completeClient(cmd, nil, toComplete)
}

// completeFrom completes from a list of the running server. A store is not opened
// for that: it would be kept from the server that is about to start.
func completeFrom[T any](cmd *cobra.Command, path string, show func(T) cobra.Completion) ([]cobra.Completion, cobra.ShellCompDirective) {
	fl := caddycmd.Flags{FlagSet: cmd.Flags()}
	if fl.Bool("offline") {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var list []T
	s, err := findServer(fl)
	if err == nil {
		var text []byte
		if text, err = ask(s, http.MethodGet, path, nil); err == nil {
			err = json.Unmarshal(text, &list)
		}
	}
	if err != nil {
		cobra.CompErrorln(err.Error())
		return nil, cobra.ShellCompDirectiveError
	}
	var completions []cobra.Completion
	for _, one := range list {
		completions = append(completions, show(one))
	}
	slices.Sort(completions)
	return slices.Compact(completions), cobra.ShellCompDirectiveNoFileComp
}

// completeFlag has a flag completed. It fails only for flags that are not there.
func completeFlag(cmd *cobra.Command, name string, complete cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(name, complete); err != nil {
		panic(err)
	}
}
