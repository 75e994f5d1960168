package main

import (
	"context"
	"log"
	"os"
	"path/filepath"
)

// measureAll measures the cases of a scenery and compares its pairs, and stops
// its servers.
func (b *bench) measureAll(ctx context.Context, s *scenery, found *outcome) error {
	defer func() {
		for _, server := range b.servers {
			server.stop()
		}
	}()
	if err := b.measureRounds(ctx, s, found); err != nil {
		return err
	}
	for _, c := range s.comparisons {
		if !b.wants(c.name) {
			continue
		}
		if err := b.compare(ctx, s, c, found); err != nil {
			return err
		}
	}
	return nil
}

// measureRounds measures the cases in turn, round after round: what changes on
// the machine in the meantime meets them all.
func (b *bench) measureRounds(ctx context.Context, s *scenery, found *outcome) error {
	var cases []*testCase
	for _, c := range s.cases {
		if b.wants(c.fullName()) {
			cases = append(cases, c)
		}
	}
	results := make([]result, len(cases))
	for i, c := range cases {
		results[i] = c.emptyResult()
		if err := s.ready(ctx, c); err != nil {
			return err
		}
		if err := b.warm(ctx, c); err != nil {
			return err
		}
	}
	for round := range b.rounds {
		for i, c := range cases {
			m, err := b.measure(ctx, c, slice{round + 1, b.rounds + 1}, b.seconds)
			if err != nil {
				return err
			}
			results[i].Measurements = append(results[i].Measurements, m)
		}
		if len(cases) > 0 {
			log.Printf("%s: round %d of %d is done", s.name, round+1, b.rounds)
		}
	}
	found.Cases = append(found.Cases, results...)
	return nil
}

// warm runs a case until it goes as it will go on: for a moment, or until each
// token was sent, or each client has come, that is to be remembered.
func (b *bench) warm(ctx context.Context, c *testCase) error {
	if b.quick || c.warmed {
		return nil
	}
	c.warmed = true
	all := *c
	s, seconds := slice{0, b.rounds + 1}, 0.3
	switch {
	case c.request.lines == "" || c.request.order == once:
	case c.request.as == "token", c.group == growthToken:
		all.request.order = once
		s, seconds = slice{0, 1}, 900
	default:
		seconds = 3
	}
	_, err := b.measure(ctx, &all, s, seconds)
	return err
}

// saveProfiles writes what the CPU does on the hot paths.
func (b *bench) saveProfiles(ctx context.Context, s *scenery) error {
	if err := os.MkdirAll(b.profile, 0o750); err != nil {
		return err
	}
	for name, c := range map[string]*testCase{
		"guard":   s.find(responded, guardOneToken),
		"nothing": s.find(responded, doesNothing),
		"token":   s.find(tokens, tokenES256),
	} {
		if err := s.ready(ctx, c); err != nil {
			return err
		}
		end, err := b.flood(ctx, c)
		if err != nil {
			return err
		}
		const seconds = 10
		path := filepath.Join(b.profile, name+".pprof")
		if err := c.server.saveProfile(ctx, path, seconds); err != nil {
			return err
		}
		if err := end(); err != nil {
			return err
		}
		log.Printf("wrote %s", path)
	}
	return nil
}
