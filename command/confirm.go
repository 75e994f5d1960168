package command

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

func addYesFlag(cmd *cobra.Command) {
	cmd.Flags().BoolP("yes", "y", false, "Do not ask")
}

// confirm asks at a terminal before something is done that can't be undone, and
// returns nil where the answer is the given one. Where there is no terminal, only
// --yes will do.
func confirm(cmd *cobra.Command, what, answer string) error {
	if yes, _ := cmd.Flags().GetBool("yes"); yes {
		return nil
	}
	in, isFile := cmd.InOrStdin().(*os.File)
	if !isFile || !term.IsTerminal(int(in.Fd())) {
		return &failure{exitRefused, fmt.Errorf("%s, and that can't be undone: where nobody can be asked, say --yes", what)}
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "%s, and that can't be undone.\nType %s to go on: ", strings.ToUpper(what[:1])+what[1:], answer)
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != answer {
		return &failure{exitRefused, errors.New("not confirmed: nothing was changed")}
	}
	return nil
}
