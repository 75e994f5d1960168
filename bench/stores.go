package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// storeSpec is what a store holds.
type storeSpec struct {
	algorithm              string
	credentials, tokens    int
	revoked, revokedTokens int
}

// lifetime of the tokens. A store is kept for half of it: its revocations
// count, and cost, only for as long as tokens can live that they refuse.
const lifetime = 60 * 24 * time.Hour

// storeFormat is that of the plugin's stores: one of an earlier format would be
// brought into it at each start.
const storeFormat = 3

// dir is where the store is, or will be.
func (b *bench) dir(s storeSpec) string {
	return filepath.Join(b.cache, fmt.Sprintf("%d-%s-%d-%d-%d-%d", storeFormat, s.algorithm, s.credentials, s.tokens, s.revoked, s.revokedTokens))
}

// makeStore makes the store, unless an earlier run has.
func (b *bench) makeStore(ctx context.Context, s storeSpec) error {
	dir := b.dir(s)
	if info, err := os.Stat(dir); err == nil {
		if time.Since(info.ModTime()) < lifetime/2 {
			return nil
		}
		_ = os.RemoveAll(dir)
	}
	log.Printf("making a store: %d credentials with %d tokens (%s), %d more credentials and %d more tokens revoked",
		s.credentials, s.tokens, s.algorithm, s.revoked, s.revokedTokens)
	work, err := os.MkdirTemp(memoryDir(), "bench-store")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	cmd := exec.CommandContext(ctx, b.program("caddy"), "bench-store", "--dir", work, //nolint:gosec // G204: built here
		"--algorithm", s.algorithm, "--lifetime", lifetime.String(),
		"--credentials", fmt.Sprint(s.credentials), "--tokens", fmt.Sprint(s.tokens),
		"--revoked", fmt.Sprint(s.revoked), "--revoked-tokens", fmt.Sprint(s.revokedTokens))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("making a store: %w: %s", err, out)
	}
	return keep(work, dir)
}

// keep copies a directory so that it is there whole or not at all.
func keep(from, to string) error {
	partial := to + ".partial"
	_ = os.RemoveAll(partial)
	if err := os.CopyFS(partial, os.DirFS(from)); err != nil {
		return err
	}
	return os.Rename(partial, to)
}

// memoryDir returns a directory in memory, where syncing costs nothing, if it
// has room for the largest store; else the directory for temporary files.
func memoryDir() string {
	const shm, room = "/dev/shm", 4 << 30
	var fs unix.Statfs_t
	if unix.Statfs(shm, &fs) == nil && fs.Bavail*uint64(fs.Bsize) > room { //nolint:gosec // G115: sizes are positive
		return shm
	}
	return os.TempDir()
}
