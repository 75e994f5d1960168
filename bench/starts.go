package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// measureStarts takes the time from the start of a Caddy to the first request
// that its guard has let through, and beside it the time that the store alone
// takes to open the same directory.
func (b *bench) measureStarts(ctx context.Context, found *outcome) error {
	for _, n := range []int{b.sizes[0], b.sizes[len(b.sizes)-1]} {
		r := start{Credentials: n}
		name := fmt.Sprintf("start with %s credentials", grouped(n))
		if !b.wants(name) {
			continue
		}
		c := b.caddy(name, b.growthSpec(n), map[string]string{"guard": "bearer_auth items:read\n" + endings("")[responded]})
		c.core = "" // it starts on all cores, as it would
		if err := c.prepare(ctx); err != nil {
			return err
		}
		for range b.rounds {
			served, err := c.timeStart(ctx)
			if err != nil {
				return err
			}
			opened, err := b.timeOpen(ctx, c.file("badger"))
			if err != nil {
				return err
			}
			r.Served, r.Opened = append(r.Served, served), append(r.Opened, opened)
		}
		log.Printf("%s: %.0f ms", name, median(r.Served))
		found.Starts = append(found.Starts, r)
	}
	return nil
}

// timeStart returns the milliseconds from the start of the process to the first
// answer 200.
func (c *caddy) timeStart(ctx context.Context) (float64, error) {
	token, err := firstLine(c.file("tokens"))
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	if err := c.start(); err != nil {
		return 0, err
	}
	defer c.stop()
	for time.Since(begin) < patience {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+c.sites["guard"].address+"/", http.NoBody)
		if err != nil {
			return 0, err
		}
		req.Header.Set("Authorization", "Bearer "+token)
		if status, _, err := send(http.DefaultClient, req); err == nil && status == http.StatusOK {
			return float64(time.Since(begin).Microseconds()) / 1000, nil
		}
		time.Sleep(time.Millisecond)
	}
	return 0, c.failed("serves no request")
}

func (b *bench) timeOpen(ctx context.Context, dir string) (float64, error) {
	out, err := exec.CommandContext(ctx, b.program("caddy"), "bench-open", "--dir", dir).Output() //nolint:gosec // G204: built here
	if err != nil {
		return 0, fmt.Errorf("opening %s: %w", dir, err)
	}
	return strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
}
