//go:build unix

package storetest

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// journal is a node of a store.Shared that is as small as one can be that is right.
// A file has each commit as a line: who has read it from its beginning knows all
// there is, and reads on to be told of changes. A lock on it puts commits in order.
// It does not sync, and so survives no loss of power.
type journal struct {
	gate sync.RWMutex // held for reading by each call, for writing by Close
	shut bool

	mu      sync.Mutex // guards what follows
	file    *os.File
	read    int64 // bytes of it
	records map[string][]byte
	follows bool
	untold  []change // of which the follower was not told

	dir  string
	own  string // file in which it says how far it is: see noteApplied
	stop chan struct{}
	told sync.WaitGroup // the goroutine that tells the follower
	seen time.Time      // when it looked last for what it was told of; mu guards it
}

const (
	lease  = 300 * time.Millisecond
	margin = lease / 3
)

type change struct {
	keys   []string
	urgent bool
}

// line is a commit in the file.
type line struct {
	Puts    []put
	Deletes [][]byte
	Urgent  bool
	Quiet   bool
}

type put struct{ Key, Value []byte }

func openJournal(_ context.Context, dir string) (store.Store, error) {
	file, err := os.OpenFile(filepath.Join(dir, "commits"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	return &journal{file: file, records: map[string][]byte{}, dir: dir, stop: make(chan struct{})}, nil
}

func newDirectory(t *testing.T) string { return t.TempDir() }

// enter holds the gate where it returns nil.
func (j *journal) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	j.gate.RLock()
	if j.shut {
		j.gate.RUnlock()
		return store.ErrClosed
	}
	return nil
}

// readOn applies what was committed since it has read last. A line without an end is
// being written, or never was.
func (j *journal) readOn() error {
	info, err := j.file.Stat()
	if err != nil {
		return err
	}
	text := make([]byte, max(0, info.Size()-j.read))
	n, err := j.file.ReadAt(text, j.read)
	if n == 0 && len(text) > 0 {
		return err
	}
	for {
		one, rest, whole := bytes.Cut(text[:n], []byte("\n"))
		if !whole {
			return nil
		}
		if err := j.apply(one); err != nil {
			return err
		}
		j.read += int64(len(one)) + 1
		n, text = len(rest), rest
	}
}

func (j *journal) apply(text []byte) error {
	var commit line
	if err := json.Unmarshal(text, &commit); err != nil {
		return err
	}
	var keys []string
	for _, p := range commit.Puts {
		j.records[string(p.Key)] = p.Value
		keys = append(keys, string(p.Key))
	}
	for _, key := range commit.Deletes {
		delete(j.records, string(key))
		keys = append(keys, string(key))
	}
	if commit.Quiet {
		keys = nil
	}
	if j.follows {
		j.untold = append(j.untold, change{keys, commit.Urgent})
	}
	return nil
}

func (j *journal) Get(ctx context.Context, key string) ([]byte, error) {
	if err := j.enter(ctx); err != nil {
		return nil, err
	}
	defer j.gate.RUnlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.readOn(); err != nil {
		return nil, err
	}
	value, found := j.records[key]
	if !found {
		return nil, store.ErrNotFound
	}
	return append([]byte{}, value...), nil
}

func (j *journal) Scan(ctx context.Context, prefix string, fn func(key string, value []byte) error) error {
	return j.ScanFrom(ctx, prefix, "", fn)
}

func (j *journal) ScanFrom(ctx context.Context, prefix, from string, fn func(key string, value []byte) error) error {
	if err := j.enter(ctx); err != nil {
		return err
	}
	defer j.gate.RUnlock()
	j.mu.Lock()
	err := j.readOn()
	view := maps.Clone(j.records)
	j.mu.Unlock()
	if err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(view)) {
		if !strings.HasPrefix(key, prefix) || key < from {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(key, append([]byte{}, view[key]...)); err != nil {
			return err
		}
	}
	return nil
}

func (j *journal) Commit(ctx context.Context, batch store.Batch) error {
	if err := j.enter(ctx); err != nil {
		return err
	}
	defer j.gate.RUnlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	descriptor := int(j.file.Fd())
	if err := syscall.Flock(descriptor, syscall.LOCK_EX); err != nil {
		return err
	}
	defer func() { _ = syscall.Flock(descriptor, syscall.LOCK_UN) }()
	if err := errors.Join(j.readOn(), j.file.Truncate(j.read)); err != nil {
		return err
	}
	for _, condition := range batch.Conditions {
		value, found := j.records[condition.Key]
		if found != (condition.Value != nil) || !bytes.Equal(value, condition.Value) {
			return store.ErrConflict
		}
	}
	text, err := encode(batch)
	if err == nil {
		_, err = j.file.WriteAt(text, j.read)
	}
	if err != nil {
		return errors.Join(err, j.file.Truncate(j.read))
	}
	return j.readOn()
}

func encode(batch store.Batch) ([]byte, error) {
	commit := line{Urgent: batch.Urgent, Quiet: batch.Quiet && !batch.Urgent}
	for _, record := range batch.Puts {
		commit.Puts = append(commit.Puts, put{[]byte(record.Key), record.Value})
	}
	for _, key := range batch.Deletes {
		commit.Deletes = append(commit.Deletes, []byte(key))
	}
	text, err := json.Marshal(commit)
	return append(text, '\n'), err
}

func (j *journal) Close() error {
	j.gate.Lock()
	defer j.gate.Unlock()
	if j.shut {
		return store.ErrClosed
	}
	j.shut = true
	close(j.stop)
	j.told.Wait()
	if j.own != "" {
		_ = os.Remove(j.own)
	}
	return j.file.Close()
}

// Try implements store.Shared: there are no settings.
func (j *journal) Try(context.Context, store.Engine) error { return nil }

// Adopt implements store.Shared.
func (j *journal) Adopt(store.Engine) {}

func (j *journal) Follow(ctx context.Context, follower store.Follower) error {
	if err := j.enter(ctx); err != nil {
		return err
	}
	defer j.gate.RUnlock()
	node, err := os.CreateTemp(j.dir, "node-*")
	if err != nil {
		return err
	}
	if err := noteApplied(node, 0, time.Now()); err != nil { // before it reads on: others wait for it from here
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.own = node.Name()
	if err := j.readOn(); err != nil {
		return err
	}
	j.follows = true
	j.seen = time.Now()
	j.told.Go(func() {
		defer node.Close()
		for {
			if err := j.tell(node, follower); err != nil {
				panic(err)
			}
			select {
			case <-j.stop:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	return nil
}

// tell tells the follower of what was committed, then others that it has.
func (j *journal) tell(node *os.File, follower store.Follower) error {
	begun := time.Now()
	j.mu.Lock()
	err := j.readOn()
	changes, read := j.untold, j.read
	j.untold = nil
	j.mu.Unlock()
	if err != nil {
		return err
	}
	for _, one := range changes {
		follower.Changed(one.keys, one.urgent)
	}
	if err := noteApplied(node, read, begun); err != nil {
		return err
	}
	j.mu.Lock()
	j.seen = begun
	j.mu.Unlock()
	return nil
}

// noteApplied says that a node knows the first bytes of the file, and when it began
// to look for more.
func noteApplied(node *os.File, read int64, at time.Time) error {
	_, err := node.WriteAt(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(read)), uint64(at.UnixNano())), 0)
	return err
}

func (j *journal) Stale() error {
	if err := j.enter(context.Background()); err != nil {
		return err
	}
	defer j.gate.RUnlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	if time.Since(j.seen) > lease {
		return fmt.Errorf("nothing is known since %v", j.seen)
	}
	return nil
}

func (j *journal) Await(ctx context.Context) error {
	if err := j.enter(ctx); err != nil {
		return err
	}
	defer j.gate.RUnlock()
	j.mu.Lock()
	err := j.readOn() // what other nodes have committed counts, too
	until, own := j.read, j.own
	j.mu.Unlock()
	if err != nil {
		return err
	}
	for {
		nodes, err := filepath.Glob(filepath.Join(j.dir, "node-*"))
		if err != nil || !slices.ContainsFunc(nodes, func(node string) bool { return node != own && mustBeAwaited(node, until) }) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

func (j *journal) OpenElsewhere(ctx context.Context) (hosts []string, err error) {
	if err := j.enter(ctx); err != nil {
		return nil, err
	}
	defer j.gate.RUnlock()
	nodes, err := filepath.Glob(filepath.Join(j.dir, "node-*"))
	for _, node := range nodes {
		if node != j.own && mustBeAwaited(node, math.MaxInt64) {
			hosts = append(hosts, "this one")
		}
	}
	return hosts, err
}

// mustBeAwaited reports whether a node may serve without knowing the first bytes of
// the file.
func mustBeAwaited(node string, until int64) bool {
	text, err := os.ReadFile(node)
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	if err != nil || len(text) < 16 {
		return true
	}
	read, at := int64(binary.BigEndian.Uint64(text)), time.Unix(0, int64(binary.BigEndian.Uint64(text[8:])))
	return read < until && time.Since(at) < lease+margin
}
