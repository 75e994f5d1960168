package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	instructionsName = "instructions per request"
	// instructionPairs are the fewest that have an interval of 95 %: a server in
	// valgrind takes its time.
	instructionPairs = 6
	// collections of garbage, each after some 1,500 requests or more, that a side
	// runs for.
	collections = 3
)

// instructionsResult is what valgrind has counted; nothing where it is missing.
type instructionsResult struct {
	Collections int      `json:"collections"` // in each measurement
	Requests    int      `json:"requests"`    // in the shortest
	Comparisons []ratios `json:"comparisons"`
}

// measureInstructions counts the instructions of those comparisons of CPU that
// have both sides on one Caddy, by running that in valgrind.
func (b *bench) measureInstructions(ctx context.Context, found *outcome) error {
	s := b.newScenery()
	var wanted []comparison
	for _, c := range s.comparisons {
		same := c.a.server == s.main.server && c.b.server == s.main.server
		if same && c.metric.name == cpuPerRequest.name && b.wants(instructionsName+", "+c.name) {
			wanted = append(wanted, c)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	r := &instructionsResult{Collections: collections}
	found.Instructions = r
	if b.valgrind == "" {
		log.Print("left out: ", instructionsName)
		return nil
	}
	if b.quick {
		r.Collections, wanted = 1, wanted[:1]
	}
	g := b.inCallgrind(s.main)
	defer s.service.stop()
	defer g.stop()
	for _, c := range wanted {
		if err := b.compareInstructions(ctx, s, g, c, r); err != nil {
			return fmt.Errorf("%s, %s: %w", instructionsName, c.name, err)
		}
	}
	return nil
}

func (b *bench) compareInstructions(ctx context.Context, s *scenery, g *callgrind, c comparison, r *instructionsResult) error {
	sides := []*testCase{c.a, c.b}
	for _, side := range sides {
		if err := s.ready(ctx, side); err != nil {
			return err
		}
	}
	if err := g.control(ctx, "instrumentation", "on"); err != nil {
		return err
	}
	counted := ratios{Name: c.name, Metric: "instructions"}
	for pair := range min(b.pairs, instructionPairs) {
		var got [2]float64
		for k := range sides {
			i := (k + pair) % 2
			total, requests, err := b.count(ctx, g, sides[i], r.Collections)
			if err != nil {
				return err
			}
			got[i] = total / float64(requests)
			if r.Requests == 0 || requests < r.Requests {
				r.Requests = requests
			}
		}
		counted.add(got[0], got[1])
	}
	r.Comparisons = append(r.Comparisons, counted)
	log.Printf("%s, %s: %.3f", instructionsName, c.name, median(counted.Ratios))
	return nil
}

// count returns the instructions of a load from the end of one garbage collection to
// the end of another: each side is to pay for all the garbage that it makes, and for
// no other.
func (b *bench) count(ctx context.Context, g *callgrind, c *testCase, times int) (total float64, requests int, err error) {
	if err := g.collect(ctx); err != nil {
		return 0, 0, err
	}
	before, err := g.collected()
	if err != nil {
		return 0, 0, err
	}
	if err := g.control(ctx, "zero"); err != nil {
		return 0, 0, err
	}
	load, err := b.startLoad(ctx, c, slice{0, 1})
	if err != nil {
		return 0, 0, err
	}
	waited := g.waitFor(ctx, before+times)
	told, err := load.finish(0)
	if err = errors.Join(waited, err); err != nil {
		return 0, 0, err
	}
	total, err = g.total(ctx)
	return total, told.Requests, err
}

// callgrind is a Caddy in valgrind, which counts the instructions that it executes
// outside the kernel.
type callgrind struct {
	*caddy
	vgdb  string
	pipes string // the option that names those to vgdb
	file  string // without the number that each dump adds to it
	dumps int
}

func (b *bench) inCallgrind(c *caddy) *callgrind {
	g := &callgrind{
		caddy: c, vgdb: filepath.Join(filepath.Dir(b.valgrind), "vgdb"),
		pipes: "--vgdb-prefix=" + filepath.Join(b.temp, "vgdb"), file: filepath.Join(b.temp, "callgrind"),
	}
	c.command = append([]string{b.valgrind, "--tool=callgrind", "--instr-atstart=no", "--callgrind-out-file=" + g.file, g.pipes}, c.command...)
	// Valgrind does not survive the signals by which Go interrupts goroutines. The
	// trace is a line in the log for each collection.
	c.env = append(c.env, "GODEBUG=asyncpreemptoff=1,gctrace=1")
	return g
}

func (g *callgrind) control(ctx context.Context, command ...string) error {
	args := append([]string{g.pipes, fmt.Sprintf("--pid=%d", g.cmd.Process.Pid)}, command...)
	if out, err := exec.CommandContext(ctx, g.vgdb, args...).CombinedOutput(); err != nil { //nolint:gosec // G204: part of valgrind
		return fmt.Errorf("vgdb: %w: %s", err, out)
	}
	return nil
}

// total returns the instructions since the counters were set to zero.
func (g *callgrind) total(ctx context.Context) (float64, error) {
	if err := g.control(ctx, "dump"); err != nil {
		return 0, err
	}
	g.dumps++
	dump, err := os.ReadFile(fmt.Sprintf("%s.%d", g.file, g.dumps))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(dump)) {
		if total, found := strings.CutPrefix(line, "totals: "); found {
			return strconv.ParseFloat(strings.TrimSpace(total), 64)
		}
	}
	return 0, g.failed("is in a callgrind that tells no totals")
}

// collected returns how often Go's collector has run.
func (g *callgrind) collected() (n int, err error) {
	text, err := os.ReadFile(g.log)
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "gc ") {
			n++
		}
	}
	return n, err
}

// waitFor waits until Go's collector has run so often.
func (g *callgrind) waitFor(ctx context.Context, collected int) error {
	for begin := time.Now(); time.Since(begin) < 5*patience; time.Sleep(10 * time.Millisecond) {
		n, err := g.collected()
		if err != nil || n >= collected {
			return err
		}
		select {
		case <-g.exited:
			return g.failed("ended")
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
	}
	return g.failed("collects no garbage")
}

func (o *outcome) writeInstructions(text *strings.Builder) {
	r := o.Instructions
	if r == nil {
		return
	}
	fmt.Fprintf(text, "\n## %s\n\n", title(instructionsName))
	if len(r.Comparisons) == 0 {
		text.WriteString("Not counted: valgrind is not installed.\n")
		return
	}
	fmt.Fprintf(text, "Counted by valgrind: Caddy's own, those of Go's garbage collector included, without the kernel's. Each measurement goes from the end of one collection to the end of another, over %d of them and at least %s requests.\n\n"+
		"| what | median ratio | 95 %% interval | pairs | medians, thousands |\n| --- | ---: | --- | ---: | --- |\n", r.Collections, grouped(r.Requests))
	for _, c := range r.Comparisons {
		low, high := interval(c.Ratios)
		fmt.Fprintf(text, "| %s | **%.3f** | %.3f–%.3f | %d | %s / %s |\n",
			c.Name, median(c.Ratios), low, high, len(c.Ratios), short(median(c.A)/1000), short(median(c.B)/1000))
	}
}
