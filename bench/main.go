// Command bench measures what the plugin costs, beside other ways to do the
// same, in one run on this machine. README.md says how to read what it writes.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"regexp"
	"syscall"
)

// options are what the command line says.
type options struct {
	rounds, pairs int
	seconds       float64 // for each measurement
	tries         int     // of the race between a revocation and its token
	nodes         int     // that share a database, at most
	sizes         []int   // of the stores of the growth series
	quick         bool    // nothing that is measured counts
	only          *regexp.Regexp
	out, profile  string
}

func main() {
	log.SetFlags(log.Ltime)
	if len(os.Args) == 2 && os.Args[1] == alternating {
		if err := takeTurns(); err != nil {
			log.Fatal(err)
		}
		return
	}
	opts, err := parseOptions()
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err = run(ctx, opts)
	cancel()
	if err != nil {
		log.Fatal(err)
	}
}

func parseOptions() (options, error) {
	var o options
	flag.IntVar(&o.rounds, "rounds", 5, "how often each case is measured, in turn with all others")
	flag.IntVar(&o.pairs, "pairs", 30, "how often the two sides of a comparison are measured, one right after the other")
	flag.Float64Var(&o.seconds, "seconds", 1, "how long a measurement takes; wrk needs at least half a second")
	flag.IntVar(&o.tries, "tries", 100_000, "how many tokens are revoked and then used again")
	flag.IntVar(&o.nodes, "nodes", 5, "how many nodes share a database in the end; each is a process of some 60 MB")
	only := flag.String("only", "", "run only the cases and comparisons whose names match this regular expression")
	flag.BoolVar(&o.quick, "quick", false, "one short round with small stores: tells that the benchmark works, and nothing else")
	flag.StringVar(&o.out, "o", "results", "the directory for results.md, results.svg and results.json")
	flag.StringVar(&o.profile, "profile", "", "a directory for CPU profiles of the guard and of the token endpoint")
	flag.Parse()
	if flag.NArg() > 0 {
		return o, fmt.Errorf("unknown argument %q: see -help", flag.Arg(0))
	}
	o.sizes = []int{100, 1_000, 10_000, 100_000, 1_000_000}
	if o.quick {
		o.rounds, o.pairs, o.seconds, o.tries, o.nodes, o.sizes = 1, 1, 0.4, 1_000, 2, []int{100, 1_000}
	}
	if o.rounds < 1 || o.pairs < 1 || o.nodes < 1 {
		return o, fmt.Errorf("-rounds, -pairs and -nodes must be at least 1")
	}
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		return o, fmt.Errorf("-only: %w", err)
	}
	return o, nil
}

// run measures everything that the options ask for, and writes the results.
func run(ctx context.Context, opts options) error {
	b, err := newBench(opts)
	if err != nil {
		return err
	}
	defer b.close()
	if err := b.build(ctx); err != nil {
		return err
	}
	found := newOutcome(opts)
	awake := stayAwake()
	defer func() { _ = awake.Close() }()
	found.Awake = awake != nil
	if err := b.measureStarts(ctx, found); err != nil {
		return err
	}
	if err := b.race(ctx, found); err != nil {
		return err
	}
	if err := b.measureStreams(ctx, found); err != nil {
		return err
	}
	if err := b.compareStores(ctx, found); err != nil {
		return err
	}
	if err := b.measureInstructions(ctx, found); err != nil {
		return err
	}
	cases := b.newScenery()
	if opts.profile != "" {
		if err := b.saveProfiles(ctx, cases); err != nil {
			return err
		}
	}
	if err := b.measureAll(ctx, cases, found); err != nil {
		return err
	}
	for _, g := range growths {
		if err := b.measureAll(ctx, b.newGrowth(g), found); err != nil {
			return err
		}
	}
	return found.write(opts.out)
}
