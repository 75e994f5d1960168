package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
)

// comparison holds two cases against each other.
type comparison struct {
	name   string
	a, b   *testCase
	metric metric
	limit  float64 // of the ratio a/b; 0: none is set
	// finer is how many times more pairs there are, for a limit that is close to what
	// is measured; 0 for one.
	finer int
}

// metric is what is compared.
type metric struct {
	name string
	of   func(measurement) float64
}

var (
	cpuPerRequest = metric{"CPU per request", func(m measurement) float64 { return m.CPU }}
	p99           = metric{"p99", func(m measurement) float64 { return m.P99 }}
)

// compare measures the two cases in turn: what changes on the machine falls out
// of the ratios.
func (b *bench) compare(ctx context.Context, s *scenery, c comparison, found *outcome) error {
	sides := []*testCase{c.a, c.b}
	if c.a.request.order == once { // the rounds have used the same lines
		for _, side := range sides {
			side.server.stop()
			side.warmed = false
		}
	}
	for _, side := range sides {
		for _, needed := range []*testCase{side.beside, side} {
			if needed == nil {
				continue
			}
			if err := s.ready(ctx, needed); err != nil {
				return err
			}
		}
		if err := b.warm(ctx, side); err != nil {
			return err
		}
	}
	r := ratios{Name: c.name, Metric: c.metric.name, Limit: c.limit}
	measure := b.measurePairs
	if c.alternates() {
		measure = b.alternate
	}
	if err := measure(ctx, c, &r); err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	found.Comparisons = append(found.Comparisons, r)
	log.Printf("%s: %.3f", c.name, median(r.Ratios))
	return nil
}

// forTail is how much longer a measurement of the slowest requests takes: beside a flood
// there are few.
const forTail = 4

// measurePairs measures the two sides one right after the other, and the other
// way round the next time.
func (b *bench) measurePairs(ctx context.Context, c comparison, r *ratios) error {
	sides := []*testCase{c.a, c.b}
	seconds := b.seconds
	if c.metric.name == p99.name {
		seconds *= forTail
	}
	pairs := b.pairs * max(c.finer, 1)
	for pair := range pairs {
		var got [2]measurement
		for k := range sides {
			i := (k + pair) % 2
			m, err := b.measure(ctx, sides[i], slice{pair + 1, pairs + 1}, seconds)
			if err != nil {
				return err
			}
			got[i] = m
		}
		r.add(c.metric.of(got[0]), c.metric.of(got[1]))
		if got[1].Instructions > 0 {
			r.Instructions = append(r.Instructions, got[0].Instructions/got[1].Instructions)
		}
	}
	return nil
}

func (r *ratios) add(a, b float64) {
	r.A, r.B, r.Ratios = append(r.A, a), append(r.B, b), append(r.Ratios, a/b)
}

// The names of cases that comparisons look for.
const (
	doesNothing   = "a handler that does nothing"
	guardOneToken = "bearer_auth, one token"
	tokenES256    = "this plugin, RFC 6749, form, ES256"
)

func (s *scenery) addComparisons() {
	token := s.find(tokens, tokenES256)
	s.comparisons = []comparison{
		{"guard over a handler that does nothing, reverse_proxy", s.find(proxied, guardOneToken), s.find(proxied, doesNothing), cpuPerRequest, 1.05, 4},
		{"guard over a handler that does nothing, respond", s.find(responded, guardOneToken), s.find(responded, doesNothing), cpuPerRequest, 1.10, 0},
		{"token endpoint over the limit, ES256", token, s.find(tokens, tokenLimit), cpuPerRequest, 1.15, 0},
		{"token endpoint over zitadel/oidc, ES256", token, s.find(tokens, "zitadel/oidc, ES256"), cpuPerRequest, 1, 0},
		s.flooded("garbage", "bearer_auth, garbage"),
		s.flooded("wrong signatures", "bearer_auth, wrong signatures"),
	}
}

// flooded compares good traffic beside a flood that the guard refuses with the
// same beside a flood that nobody looks at.
func (s *scenery) flooded(name, flood string) comparison {
	good := *s.find(responded, guardOneToken)
	good.connections = 4
	refusing, bare := *s.find(refused, flood), *s.find(refused, "respond 401")
	bare.request = refusing.request
	beside := func(flood *testCase) *testCase {
		c := good
		c.beside = flood
		return &c
	}
	return comparison{"good traffic beside a flood of " + name + ", refused by the guard over by respond 401", beside(&refusing), beside(&bare), p99, 1.3, 0}
}

// growth is a series of cases on stores of all sizes, with a tenth of their size
// in revoked credentials, and in revoked tokens.
type growth struct {
	group  string
	option string // one more setting of the app, if any
	uses   []use
}

// use is a way in which clients take turns.
type use struct {
	name   string
	suffix string // of the file of lines
	order  order
	limit  float64 // of the ratio of the largest store to the smallest; 0: none is set
	finer  int     // as that of a comparison
}

const (
	growthGuard = "growth, guard"
	growthToken = "growth, token endpoint"
	zipfDraws   = 200_000
)

var (
	oneClient = use{"one client", "", inTurn, 1.03, 0}
	zipf      = use{"Zipf", ".zipf", fromAnywhere, 1.05, 3}
	uniform   = use{"uniform", "", fromAnywhere, 1.15, 0}
)

// growths have servers of their own, each: what the one has put into the
// guard's memory must not be of use, or in the way, to the other. One client has
// them to itself, too: to make room in a memory that others have filled takes the
// same in a store of any size.
var growths = []growth{
	{growthGuard, "", []use{oneClient}},
	{growthGuard, "", []use{byDefault(zipf), {"each token once", "", once, 0, 0}}},
	{growthGuard, roomForAll, []use{zipf, uniform}},
	{growthToken, "", []use{oneClient}},
	{growthToken, "", []use{byDefault(zipf), byDefault(uniform)}},
	{growthToken, roomForAll, []use{zipf, uniform}},
}

// roomForAll is for the tokens of a million clients, and these.
const roomForAll = "token_cache 2GiB"

// byDefault is the same with the memory that a server has for as long as nobody
// gives it more: what does not fit is no matter of the store's size alone.
func byDefault(u use) use {
	u.name, u.limit, u.finer = u.name+", 64 MiB", 0, 0
	return u
}

// growthUses returns the ways in which clients take turns in a group.
func growthUses(group string) (uses []use) {
	for _, g := range growths {
		if g.group == group {
			uses = append(uses, g.uses...)
		}
	}
	return uses
}

func (b *bench) newGrowth(g growth) *scenery {
	s := &scenery{name: g.group, bench: b}
	for _, n := range b.sizes {
		c := b.caddy(fmt.Sprintf("growth %d", n), b.growthSpec(n), map[string]string{
			"guard": "bearer_auth items:read\n" + endings("")[responded],
			"token": "client_credentials",
		})
		c.option = g.option
		prepare := c.prepare
		c.prepare = func(ctx context.Context) error {
			if err := prepare(ctx); err != nil {
				return err
			}
			for _, name := range []string{"tokens", "clients"} {
				if err := writeZipf(c.file(name), c.file(name)+".zipf", n, min(zipfDraws, b.growthSpec(n).tokens)); err != nil {
					return err
				}
			}
			return nil
		}
		for _, use := range g.uses {
			s.addGrowth(c, n, g.group, use)
		}
	}
	first, last := b.sizes[0], b.sizes[len(b.sizes)-1]
	for _, use := range g.uses {
		s.comparisons = append(s.comparisons, comparison{
			fmt.Sprintf("%s, %s: %s credentials over %s", g.group, use.name, grouped(last), grouped(first)),
			s.find(g.group, growthName(use.name, last)), s.find(g.group, growthName(use.name, first)), cpuPerRequest, use.limit, use.finer,
		})
	}
	return s
}

func growthName(use string, credentials int) string {
	return fmt.Sprintf("%s, %s credentials", use, grouped(credentials))
}

func (b *bench) growthSpec(n int) storeSpec {
	return storeSpec{algorithm: "ES256", credentials: n, tokens: max(n, b.sizes[len(b.sizes)-1]/5), revoked: n / 10, revokedTokens: n / 10}
}

func (s *scenery) addGrowth(c *caddy, n int, group string, use use) {
	var r request
	site := "guard"
	switch {
	case group == growthToken:
		site = "token"
		r = request{lines: c.file("clients") + use.suffix, as: "body", contentType: formType, order: use.order}
		if use == oneClient {
			r = dialects[0].request(c.file("clients"))
		}
		r.method, r.path = http.MethodPost, tokenPath
	case use == oneClient:
		r = request{token: lineOf(c.file("tokens"))}
	default:
		r = request{lines: c.file("tokens") + use.suffix, as: "token", order: use.order}
		if use == uniform && s.bench.growthSpec(n).tokens > n {
			r.firstN = n // one token of each
		}
	}
	s.add(&testCase{
		group: group, name: growthName(use.name, n), use: use.name, credentials: n,
		server: c.server, address: c.sites[site].address, request: r,
	})
}
