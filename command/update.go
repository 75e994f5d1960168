package command

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

func updateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "update <client id> [--name <name>] [--scope <scope>]... [--audience <audience>]... [--grantable <scope>]... " +
			"[--token-lifetime <duration>] [--claims <json>] [--tokens-per-hour <number>] [--requests-per-second <number>] [--expires <time>] [--clear <flag>]... [--json]",
		Short: "Changes a credential where it stands",
		Long: `
Changes what is named of a credential, and leaves the rest as it is. A list takes
the place of the one before; of the claims, only those change that are named, and
one goes that is null. What --clear names is as if it had never been given; of the
scopes, there are none then. For example:

	caddy client-credentials update $ID --scope items:read --clear expires

The tokens that it has obtained are refused if it loses a scope or an audience.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeClient,
	}
	addMemberFlags(cmd)
	cmd.Flags().StringSlice("clear", nil, "The flag whose value shall go: "+strings.Join(memberFlags(), ", ")+"; can be repeated")
	cmd.Flags().Bool("json", false, "Print the JSON object of the credential as it is now")
	completeFlag(cmd, "clear", cobra.FixedCompletions(memberFlags(), cobra.ShellCompDirectiveNoFileComp))
	run(cmd, func(cmd *cobra.Command, m manager, args []string) error {
		patch, err := namedMembers(cmd)
		if err != nil {
			return err
		}
		if err := clearMembers(cmd, patch); err != nil {
			return err
		}
		if len(patch) == 0 {
			return misused("name what shall change, or go by --clear")
		}
		return change(cmd, m, args[0], patch, "updated")
	})
	return cmd
}

// enabledCommand returns the command that disables credentials, or enables them.
func enabledCommand(name string, enabled bool) *cobra.Command {
	cmd := &cobra.Command{
		Use:   name + " <client id> [--json]",
		Short: "Refuses a credential and its tokens until it is enabled again",
		Args:  cobra.ExactArgs(1), ValidArgsFunction: completeClient,
	}
	if enabled {
		cmd.Short = "Lets a disabled credential obtain tokens again; those from before stay refused"
	}
	cmd.Flags().Bool("json", false, "Print the JSON object of the credential as it is now")
	run(cmd, func(cmd *cobra.Command, m manager, args []string) error {
		return change(cmd, m, args[0], map[string]any{"enabled": enabled}, name+"d")
	})
	return cmd
}

func change(cmd *cobra.Command, m manager, clientID string, patch map[string]any, done string) error {
	changed, err := ask(m, http.MethodPatch, credentialPath(clientID), patch)
	if err != nil {
		return err
	}
	return output(cmd, changed, func(w io.Writer, _ []byte) error {
		_, err := fmt.Fprintln(w, done, clientID)
		return err
	})
}

// members are those of a credential that create and update take, and their flags.
var members = []struct{ flag, name string }{
	{"name", "name"},
	{"expires", "expires"},
	{"scope", "scopes"},
	{"audience", "audiences"},
	{"grantable", "grantable"},
	{"token-lifetime", "tokenLifetime"},
	{"claims", "claims"},
	{"tokens-per-hour", "tokensPerHour"},
	{"requests-per-second", "requestsPerSecond"},
}

func memberFlags() (flags []string) {
	for _, m := range members {
		flags = append(flags, m.flag)
	}
	return flags
}

func addMemberFlags(cmd *cobra.Command) {
	cmd.Flags().String("name", "", "A label for people")
	cmd.Flags().String("expires", "", "When it stops working, as RFC 3339 has it: 2030-01-31T12:00:00Z (default: never)")
	cmd.Flags().StringArray("scope", nil, "A scope that its tokens may carry; can be repeated")
	cmd.Flags().StringArray("audience", nil, "What its tokens may be for; can be repeated (default: the audience of the configuration)")
	cmd.Flags().StringArray("grantable", nil, "A scope that it may give to credentials that it creates, or '' alone for none; can be repeated (default: its scopes but those for management)")
	cmd.Flags().String("token-lifetime", "", "How long its tokens live, such as 15m (default, and at most: as the configuration says)")
	cmd.Flags().String("claims", "", `Claims that its tokens carry beside their own, as a JSON object: {"tenant": "a"}`)
	cmd.Flags().Int("tokens-per-hour", 0, "How many tokens it gets in an hour (default: any number)")
	cmd.Flags().Int("requests-per-second", 0, "How many requests it may send through the guards in a second (default: any number)")
}

// namedMembers returns the members whose flags were given.
func namedMembers(cmd *cobra.Command) (map[string]any, error) {
	named := make(map[string]any)
	for _, m := range members {
		if !cmd.Flags().Changed(m.flag) {
			continue
		}
		switch m.flag {
		case "scope", "audience", "grantable":
			values := cmd.Flags().Lookup(m.flag).Value.(interface{ GetSlice() []string }).GetSlice() // GetStringArray takes one that is "" for none
			if m.flag == "grantable" && len(values) == 1 && values[0] == "" {
				values = []string{}
			}
			named[m.name] = values
		case "claims":
			text := caddycmd.Flags{FlagSet: cmd.Flags()}.String(m.flag)
			if !json.Valid([]byte(text)) {
				return nil, misused("--claims is no JSON")
			}
			named[m.name] = json.RawMessage(text)
		case "tokens-per-hour", "requests-per-second":
			named[m.name] = caddycmd.Flags{FlagSet: cmd.Flags()}.Int(m.flag)
		default:
			named[m.name] = caddycmd.Flags{FlagSet: cmd.Flags()}.String(m.flag)
		}
	}
	return named, nil
}

// clearMembers has a patch take away what --clear names.
func clearMembers(cmd *cobra.Command, patch map[string]any) error {
	flags, err := cmd.Flags().GetStringSlice("clear")
	if err != nil {
		return err
	}
	for _, flag := range flags {
		known := slices.Index(memberFlags(), flag)
		if known < 0 {
			return misused("--clear takes %s", strings.Join(memberFlags(), ", "))
		}
		if cmd.Flags().Changed(flag) {
			return misused("--%s and --clear %s do not go together", flag, flag)
		}
		patch[members[known].name] = nil
		if flag == "scope" {
			patch["scopes"] = []string{}
		}
	}
	return nil
}
