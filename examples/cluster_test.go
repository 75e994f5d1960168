package examples_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/freeport"
	"github.com/clientcredentials/caddy-client-credentials/internal/postgresserver"
	"github.com/clientcredentials/caddy-client-credentials/internal/testserver"
)

func TestMain(m *testing.M) { testserver.Main(m) }

// The script itself checks what it is answered.
func TestTheClusterRuns(t *testing.T) {
	if _, err := postgresserver.Binaries(); err != nil && os.Getenv("CI") == "" {
		t.Skip(err)
	}
	ports := make([]string, 5)
	for n := range ports {
		ports[n] = fmt.Sprint(freeport.For(t))
	}
	script, err := filepath.Abs("cluster/run")
	if err != nil {
		t.Fatal(err)
	}
	s := &testserver.Server{Dir: t.TempDir()}
	caddy := s.Command()
	if err := os.Symlink(caddy.Path, filepath.Join(s.Dir, "caddy")); err != nil {
		t.Fatal(err)
	}
	// Not t.TempDir, which PostgreSQL's user can't enter.
	temporary, err := os.MkdirTemp("", "cluster")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(temporary)
	if err := os.Chmod(temporary, 0o711); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, script, "show")
	cmd.Dir = s.Dir
	cmd.Env = append(caddy.Env, "TMPDIR="+temporary, "PORTS="+strings.Join(ports, " "))
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	output, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	for _, status := range []string{"200", "401"} {
		for _, port := range ports[:4] {
			if want := status + " from localhost:" + port + "\n"; !strings.Contains(string(output), want) {
				t.Errorf("no %q", want)
			}
		}
	}
	if t.Failed() {
		t.Logf("%s", output)
	}
	if left, err := os.ReadDir(temporary); err != nil || len(left) > 0 {
		t.Errorf("it has left %v, %v", left, err)
	}
	for _, port := range ports {
		if conn, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
			_ = conn.Close()
			t.Errorf("somebody still listens on %s", port)
		}
	}
}

func TestTheClustersCaddyfilesAreTidy(t *testing.T) {
	for _, name := range []string{"node", "balancer"} {
		text := read(t, "cluster/"+name+".Caddyfile")
		adapt(t, text)
		if !strings.Contains(text, "#\texamples/cluster/run\n") {
			t.Errorf("%s does not say how to run it", name)
		}
	}
}
