package main

import (
	"context"
	"fmt"
	"log"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	revokeName = twoStores + ", revocations by nodes"
	loadName   = twoStores + ", load of nodes on the database"
	revokers   = 64
)

// nodesResult is what nodes that share a database cost each other.
type nodesResult struct {
	Size        databaseSize  `json:"size"`
	Revocations []revocations `json:"revocations"`
	Loads       []nodesLoad   `json:"loads"`
}

// revocations is how long the revocation of a credential takes. It returns when no
// node accepts its tokens any more.
type revocations struct {
	Store      string  `json:"store"`
	Nodes      int     `json:"nodes"`
	Tries      int     `json:"tries"`
	P50        float64 `json:"p50_ms"`
	P99        float64 `json:"p99_ms"`
	Commits    float64 `json:"commits"` // of each, in the database, with the polls meanwhile
	Statements float64 `json:"statements"`
	PerSecond  float64 `json:"per_second"` // with so many revokers at once
}

// nodesLoad is what a second of nodes is to the database.
type nodesLoad struct {
	Nodes       int     `json:"nodes"`
	Doing       string  `json:"doing"`
	PerSecond   float64 `json:"requests_per_second,omitempty"` // of the node that does something
	Commits     float64 `json:"commits_per_second"`            // of all nodes, as all that follows
	Statements  float64 `json:"statements_per_second"`
	CPU         float64 `json:"cpu_ms_per_second"` // of PostgreSQL
	Connections int64   `json:"connections"`
}

// measureNodes measures with more and more nodes, and revocations first on Badger.
func (b *bench) measureNodes(ctx context.Context, d *database, local *caddy, spec storeSpec, found *nodesResult) error {
	tries := 300
	if b.quick {
		tries = 20
	}
	if b.wants(revokeName) {
		local.core = "" // as the nodes
		err := local.ensure(ctx)
		if err == nil {
			err = b.measureRevocations(ctx, nil, []*caddy{local}, tries, found)
		}
		local.stop()
		if err != nil {
			return err
		}
	}
	var nodes []*caddy
	defer func() {
		for _, node := range nodes {
			node.stop()
		}
	}()
	for _, n := range []int{1, 2, 3, 5, 10, 30, 100} {
		if n > b.nodes {
			break
		}
		for len(nodes) < n {
			node := b.caddy(fmt.Sprint("node ", len(nodes)+1), spec, storeSites())
			node.database, node.core = d.store, "" // on all cores, as PostgreSQL
			nodes = append(nodes, node)
			if err := node.ensure(ctx); err != nil {
				return err
			}
		}
		if b.wants(loadName) {
			if err := b.measureLoads(ctx, d, nodes, found); err != nil {
				return err
			}
		}
		if b.wants(revokeName) {
			if err := b.measureRevocations(ctx, d, nodes, tries, found); err != nil {
				return err
			}
		}
	}
	return nil
}

// measureLoads measures nodes that do nothing but to follow the store, and then the
// first of them under each load.
func (b *bench) measureLoads(ctx context.Context, d *database, nodes []*caddy, found *nodesResult) error {
	if err := d.settle(ctx); err != nil {
		return err
	}
	first := nodes[0]
	busy := func(site string, status, connections int, r request) *testCase {
		return &testCase{server: first.server, address: first.sites[site].address, status: status, connections: connections, request: r}
	}
	for _, doing := range []struct {
		name     string
		testCase *testCase
	}{
		{"nothing", nil},
		{"guarded requests, one token", busy("guard", http.StatusOK, concurrency, request{method: http.MethodGet, path: "/", token: lineOf(first.file("tokens"))})},
		{"tokens, one client", busy("token", http.StatusOK, concurrency, tokenRequest(dialects[0].request(first.file("clients"))))},
		{"creates credentials", busy("token", http.StatusCreated, revokers, createRequest(lineOf(first.file("manager_token"))))},
	} {
		load, err := b.measureLoad(ctx, d, doing.testCase)
		if err != nil {
			return fmt.Errorf("%s, %s: %w", loadName, doing.name, err)
		}
		load.Nodes, load.Doing = len(nodes), doing.name
		found.Loads = append(found.Loads, load)
		log.Printf("%d nodes, %s: %.0f requests/s, %.0f commits/s", load.Nodes, load.Doing, load.PerSecond, load.Commits)
	}
	return nil
}

// measureLoad takes what PostgreSQL does in some seconds: more of them where nothing
// happens but a few polls.
func (b *bench) measureLoad(ctx context.Context, d *database, c *testCase) (l nodesLoad, err error) {
	while := time.Duration(b.seconds * float64(time.Second))
	if !b.quick {
		while *= 5
	}
	before, err := d.counters(ctx)
	if err != nil {
		return l, err
	}
	if c == nil {
		if !b.quick {
			while *= 4
		}
		select {
		case <-time.After(while):
		case <-ctx.Done():
			return l, ctx.Err()
		}
	} else {
		load, err := b.startLoad(ctx, c, slice{0, 1})
		if err != nil {
			return l, err
		}
		done, err := load.finish(while)
		if err != nil {
			return l, err
		}
		l.PerSecond = float64(done.Requests) / done.Microseconds * 1e6
	}
	after, err := d.counters(ctx)
	used := after.since(before)
	l.Commits = float64(used.commits) / used.time.Seconds()
	l.Statements = float64(used.statements) / used.time.Seconds()
	l.CPU = used.cpu.Seconds() * 1000 / used.time.Seconds()
	l.Connections = after.connections
	return l, err
}

// measureRevocations revokes credentials through the first node: one by one, with a
// pause before each that has the nodes wait for a change as they would if one came
// now and then; and then as many at once.
func (b *bench) measureRevocations(ctx context.Context, d *database, nodes []*caddy, tries int, found *nodesResult) error {
	v := revocations{Store: "PostgreSQL", Nodes: len(nodes), Tries: tries}
	if d == nil {
		v.Store = "Badger"
	}
	manager, err := firstLine(nodes[0].file("manager_token"))
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: revokers}}
	r := &racer{caddy: nodes[0], manager: manager, client: client}
	ids := make([]string, 2*tries)
	if _, err := forEach(ids, func(i int) (err error) {
		ids[i], _, err = r.create(ctx)
		return err
	}); err != nil {
		return err
	}
	before, err := d.counters(ctx)
	if err != nil {
		return err
	}
	took := make([]float64, tries)
	for i, id := range ids[:tries] {
		time.Sleep(25*time.Millisecond + rand.N(50*time.Millisecond)) //nolint:gosec // G404: chance is enough
		begin := time.Now()
		if err := r.revokeCredential(ctx, id); err != nil {
			return err
		}
		took[i] = float64(time.Since(begin).Microseconds()) / 1000
	}
	after, err := d.counters(ctx)
	if err != nil {
		return err
	}
	used := after.since(before)
	v.P50, v.P99 = percentile(took, 50), percentile(took, 99)
	v.Commits, v.Statements = float64(used.commits)/float64(tries), float64(used.statements)/float64(tries)
	whole, err := forEach(ids[tries:], func(i int) error { return r.revokeCredential(ctx, ids[tries+i]) })
	if err != nil {
		return err
	}
	v.PerSecond = float64(tries) / whole.Seconds()
	found.Revocations = append(found.Revocations, v)
	log.Printf("%s, %d nodes: a revocation takes %.1f ms, %.1f at p99; %.0f a second", v.Store, v.Nodes, v.P50, v.P99, v.PerSecond)
	return nil
}

// forEach does something for each index of the list, for many at once, and returns
// how long all of that took.
func forEach(list []string, do func(i int) error) (time.Duration, error) {
	begin := time.Now()
	var group errgroup.Group
	group.SetLimit(revokers)
	for i := range list {
		group.Go(func() error { return do(i) })
	}
	err := group.Wait()
	return time.Since(begin), err
}

func (o *outcome) writeNodes(text *strings.Builder) {
	r := o.Nodes
	if r == nil {
		return
	}
	each := func(bytes int64) string { return grouped(int(bytes / int64(r.Size.Credentials))) }
	fmt.Fprintf(text, "\n## Nodes that share a database\n\n%s credentials, a tenth of them revoked, with as many revoked tokens: %s records in PostgreSQL. A credential takes **%s bytes**, of which %s are of the index.\n",
		grouped(r.Size.Credentials), grouped(r.Size.Records), each(r.Size.Bytes), each(r.Size.IndexBytes))
	if len(r.Revocations) > 0 {
		fmt.Fprintf(text, "\nRevoking a credential, alone; and with %d that do so at once.\n\n"+
			"| store | nodes | p50, ms | p99, ms | of | commits | statements | at once: revocations/s |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n", revokers)
	}
	for _, v := range r.Revocations {
		fmt.Fprintf(text, "| %s | %d | **%s** | %s | %d | %s | %s | %s |\n",
			v.Store, v.Nodes, short(v.P50), short(v.P99), v.Tries, short(v.Commits), short(v.Statements), short(v.PerSecond))
	}
	if len(r.Loads) > 0 {
		text.WriteString("\nWhat PostgreSQL has to do in a second, by what the first node does. The others do nothing but follow. Commits are those of transactions that have written.\n\n" +
			"| nodes | the first one does | requests/s | commits/s | statements/s | CPU, ms/s | connections |\n| ---: | --- | ---: | ---: | ---: | ---: | ---: |\n")
	}
	for _, l := range r.Loads {
		fmt.Fprintf(text, "| %d | %s | %s | %s | %s | %s | %d |\n",
			l.Nodes, l.Doing, short(l.PerSecond), short(l.Commits), short(l.Statements), short(l.CPU), l.Connections)
	}
}
