package command_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

// openTerminal returns both ends of a new one: what types and reads, and what a
// command has as its own.
func openTerminal(t *testing.T) (keyboard, terminal *os.File) {
	t.Helper()
	keyboard, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keyboard.Close() })
	fd := int(keyboard.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return keyboard, terminal
}

// typeTo runs a command at a terminal where that is typed.
func typeTo(t *testing.T, s *testserver.Server, typed string, args ...string) result {
	t.Helper()
	keyboard, terminal := openTerminal(t)
	if _, err := keyboard.WriteString(typed); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr strings.Builder
	cmd := s.Command(append([]string{"client-credentials"}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = terminal, &stdout, &stderr
	if err := cmd.Run(); cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

func TestAtATerminalItAsks(t *testing.T) {
	s := simple(t)
	c := create(t, s, "--account", "team-7")
	create(t, s, "--account", "team-7")
	token := s.Token(t, c)
	for _, typed := range []string{"\n", "1\n", "yes\n", "22\n", "\x04"} { // ^D ends the input
		r := typeTo(t, s, typed, "revoke", "--account", "team-7")
		if r.code != 4 || r.stdout != "" || !strings.Contains(r.stderr, "This revokes all credentials of the account team-7, 2 at present") || !strings.Contains(r.stderr, "not confirmed") {
			t.Errorf("typed %q: exit code %d, %s%s", typed, r.code, r.stdout, r.stderr)
		}
	}
	for _, args := range [][]string{
		{"revoke", "--created-by", c.ClientID},
		{"rotate-secret", "--overlap", "0s", c.ClientID},
		{"delete-secret", c.ClientID, secretIDs(t, s, c)[0]},
	} {
		if r := typeTo(t, s, "no\n", args...); r.code != 4 || !strings.Contains(r.stderr, "Type yes to go on") {
			t.Errorf("%q: exit code %d, %s%s", args, r.code, r.stdout, r.stderr)
		}
	}
	wantStatus(t, s, token, 200)
	if r := typeTo(t, s, "2\n", "revoke", "--account", "team-7"); r.code != 0 || r.stdout != "revoked 2 credentials\n" {
		t.Errorf("confirmed: exit code %d, %s%s", r.code, r.stdout, r.stderr)
	}
	wantStatus(t, s, token, 401)
}
