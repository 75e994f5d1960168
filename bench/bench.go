package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/clientcredentials/caddy-client-credentials/internal/postgresserver"
)

// bench is one run: what is built, where it works and what is running.
type bench struct {
	options
	temp  string // gone after the run
	cache string // kept: stores take minutes to make

	locked *os.File // the cache, as long as this runs

	serverCore, loadCore string // numbers of cores, empty on a machine with one
	counts               bool   // whether perf can count instructions

	nginx, node, valgrind string // empty: not installed
	postgres              bool   // whether it is installed

	servers []*server
	copies  []string // of stores, which the servers change
}

func newBench(opts options) (*bench, error) {
	b := &bench{options: opts}
	if err := b.findTools(); err != nil {
		return nil, err
	}
	var err error
	if b.cache, err = os.UserCacheDir(); err != nil {
		return nil, err
	}
	b.cache = filepath.Join(b.cache, "caddy-client-credentials-bench")
	if err := os.MkdirAll(b.cache, 0o700); err != nil {
		return nil, err
	}
	if err := b.lockCache(); err != nil {
		return nil, err
	}
	if b.temp, err = os.MkdirTemp("", "bench"); err != nil {
		return nil, err
	}
	// nginx's workers may run as another user.
	return b, os.Chmod(b.temp, 0o711) //nolint:gosec // G302: what is secret here is secret for the run of a benchmark
}

// lockCache keeps a second run away, until this process ends: it would disturb
// the figures, and can't open the same stores.
func (b *bench) lockCache() error {
	dir, err := os.Open(b.cache)
	if err != nil {
		return err
	}
	b.locked = dir // kept open
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("another benchmark is running, wait until it has ended: %s: %w", b.cache, err)
	}
	return nil
}

func (b *bench) close() {
	for _, s := range b.servers {
		s.stop()
	}
	for _, dir := range append(b.copies, b.temp) {
		_ = os.RemoveAll(dir)
	}
}

// findTools looks for what the benchmark doesn't build itself. It can do
// without the peers and valgrind; but CI must notice if it does.
func (b *bench) findTools() error {
	for tool, pkg := range map[string]string{"wrk": "wrk", "taskset": "util-linux"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is missing: apt-get install %s", tool, pkg)
		}
	}
	var missing []string
	find := func(tool, pkg string) string {
		for _, name := range []string{tool, "/usr/sbin/" + tool} {
			if path, err := exec.LookPath(name); err == nil {
				return path
			}
		}
		missing = append(missing, tool+" (Debian package "+pkg+")")
		return ""
	}
	b.nginx = find("nginx", "nginx-light")
	b.node = find("node", "nodejs")
	if find("npm", "npm") == "" {
		b.node = ""
	}
	b.valgrind = find("valgrind", "valgrind")
	_, err := postgresserver.Binaries()
	if b.postgres = err == nil; !b.postgres {
		missing = append(missing, "initdb (Debian package postgresql)")
	}
	if len(missing) > 0 && os.Getenv("CI") == "true" {
		return fmt.Errorf("CI measures all there is, and lacks %s", strings.Join(missing, ", "))
	}
	for _, tool := range missing {
		log.Printf("left out: what needs %s", tool)
	}
	b.counts = perfCounts()
	return b.chooseCores()
}

// chooseCores gives the server and the load a core each: else the scheduler's
// moves are in the figures.
func (b *bench) chooseCores() error {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return err
	}
	var cores []string
	for core := 0; len(cores) < min(2, set.Count()); core++ {
		if set.IsSet(core) {
			cores = append(cores, strconv.Itoa(core))
		}
	}
	if len(cores) < 2 {
		log.Print("this machine has one core: the load and the servers share it")
		return nil
	}
	b.serverCore, b.loadCore = cores[0], cores[1]
	return nil
}

// build makes the programs that run beside this one.
func (b *bench) build(ctx context.Context) error {
	for name, dir := range map[string]string{
		"caddy": "./caddy", "service": "./service", "zitadel": "./peers/zitadel", "fosite": "./peers/fosite",
	} {
		log.Printf("building %s", name)
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", b.program(name), ".") //nolint:gosec // G204: go build
		cmd.Dir, cmd.Stderr = dir, os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("building %s (is this run in bench/?): %w", dir, err)
		}
	}
	if b.node == "" {
		return nil
	}
	log.Print("npm ci, for oidc-provider")
	cmd := exec.CommandContext(ctx, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
	cmd.Dir, cmd.Stderr = "peers/oidc-provider", os.Stderr
	return cmd.Run()
}

func (b *bench) program(name string) string { return filepath.Join(b.temp, name) }

// freeAddress returns an address on loopback that nobody listens on, and that it
// has not returned before: what is to listen there is started later.
func freeAddress() string {
	for {
		listener, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // returns at once
		if err != nil {
			panic(err) // a machine without loopback
		}
		address := listener.Addr().String()
		_ = listener.Close()
		if !promised[address] {
			promised[address] = true
			return address
		}
	}
}

// promised are the addresses that freeAddress has returned.
var promised = make(map[string]bool)

// machine tells what the figures were measured on.
func machine() string {
	model := runtime.GOARCH
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	kernel := ""
	if text, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		kernel = strings.TrimSpace(string(text))
	}
	return fmt.Sprintf("%s, %d cores, Linux %s, %s", model, runtime.NumCPU(), kernel, runtime.Version())
}
