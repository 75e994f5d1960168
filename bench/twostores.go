package main

import (
	"context"
	"log"
	"net/http"
	"slices"
)

const (
	twoStores       = "two stores"
	sizeName        = twoStores + ", size of the database"
	onBadger        = ", Badger"
	onPostgreSQL    = ", PostgreSQL"
	storeToken      = "a token"
	storeGuard      = "a guarded request, one token"
	smallTokenCache = "token_cache 1MiB" // for some thousand tokens, and as many credentials
)

// compareStores measures the same on Badger and on PostgreSQL, and what nodes that
// share the database cost each other.
func (b *bench) compareStores(ctx context.Context, found *outcome) error {
	spec := b.growthSpec(100_000)
	if b.quick {
		spec = b.growthSpec(b.sizes[len(b.sizes)-1])
	}
	local := b.onCopy(b.caddy("two-stores-badger", spec, storeSites()), b.temp)
	shared := b.caddy("two-stores-postgres", spec, storeSites())
	s := b.newStoreScenery(local, shared, spec.credentials/2)
	measured := func(c *testCase) bool { return b.wants(c.fullName()) }
	if !slices.ContainsFunc(s.cases, measured) && !b.wants(sizeName) && !b.wants(revokeName) && !b.wants(loadName) {
		return nil
	}
	if !b.postgres {
		log.Print("left out: two stores")
		return nil
	}
	d, err := b.startDatabase(ctx)
	if err != nil {
		return err
	}
	defer d.close()
	shared.database = d.store
	if err := d.fill(ctx, local, shared); err != nil {
		return err
	}
	found.Nodes = &nodesResult{}
	if found.Nodes.Size, err = d.measureSize(ctx); err != nil {
		return err
	}
	found.Nodes.Size.Credentials = spec.credentials + spec.revoked + 1 // who creates
	for _, c := range s.cases {
		if c.server == shared.server {
			c.database = d
		}
	}
	if err := b.measureAll(ctx, s, found); err != nil {
		return err
	}
	if !b.wants(revokeName) && !b.wants(loadName) {
		return nil
	}
	return b.measureNodes(ctx, d, local, spec, found.Nodes)
}

func storeSites() map[string]string {
	return map[string]string{"token": "client_credentials", "guard": "bearer_auth items:read\n" + endings("")[responded]}
}

// newStoreScenery has each case on both stores, one right after the other. So many
// credentials stay; the others are there to be revoked.
func (b *bench) newStoreScenery(local, shared *caddy, stay int) *scenery {
	s := &scenery{name: twoStores, bench: b}
	ids := b.program("ids-of-two-stores")
	for _, c := range []*caddy{local, shared} {
		c.option = smallTokenCache
		prepare := c.prepare
		c.prepare = func(ctx context.Context) error {
			if err := prepare(ctx); err != nil {
				return err
			}
			return writeIDs(c.file("clients"), ids, stay)
		}
	}
	clients, tokens, manager := shared.file("clients"), shared.file("tokens"), lineOf(shared.file("manager_token"))
	for _, thing := range []struct {
		name, site          string
		status, connections int
		request             request
	}{
		{storeGuard, "guard", http.StatusOK, 0, request{token: lineOf(tokens)}},
		{"a guarded request, each token once", "guard", http.StatusOK, 0, request{lines: tokens, as: "token", firstN: stay, order: once}},
		{storeToken, "token", http.StatusOK, 0, tokenRequest(dialects[0].request(clients))},
		{"a token, clients that are not remembered", "token", http.StatusOK, 0, tokenRequest(anyClient(clients, stay))},
		{"create a credential", "token", http.StatusCreated, 64, createRequest(manager)},
		{"revoke a credential", "token", http.StatusNoContent, 64, revokeRequest(manager, ids)},
	} {
		for i, c := range []*caddy{local, shared} {
			s.add(&testCase{
				group: twoStores, name: thing.name + []string{onBadger, onPostgreSQL}[i], server: c.server, address: c.sites[thing.site].address,
				status: thing.status, connections: thing.connections, request: thing.request,
			})
		}
	}
	for _, name := range []string{storeGuard, storeToken} {
		s.comparisons = append(s.comparisons, comparison{
			twoStores + ", " + name + ": PostgreSQL over Badger", s.find(twoStores, name+onPostgreSQL), s.find(twoStores, name+onBadger), cpuPerRequest, 0, 0,
		})
	}
	return s
}

// anyClient has the first clients ask for tokens, from one of them on.
func anyClient(clients string, firstN int) request {
	return request{lines: clients, as: "body", contentType: formType, firstN: firstN, order: fromAnywhere}
}
