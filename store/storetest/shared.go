package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

var sharedChecks = []check{
	{"EachNodeSeesWhatAnyHasCommitted", nodesSeeCommits},
	{"ConditionsHoldAmongNodes", nodesCountUp},
	{"EachNodeIsToldOfEachCommitInOrder", toldInOrder},
	{"AQuietCommitIsToldWithoutItsKeys", toldQuietly},
	{"ANodeThatBeginsToFollowMissesNothing", followMissesNothing},
	{"AwaitReturnsWhenAllNodesKnow", awaitAll},
	{"ANodeThatHangsIsStaleBeforeAwaitReturns", awaitHanging},
	{"AwaitEndsWithItsContext", awaitContext},
	{"AwaitWaitsForNoNodeThatHasEnded", awaitEnded},
	{"ANodeIsStaleUnlessItFollows", staleUnlessFollowing},
	{"WhoElseHasTheStoreOpenIsTold", openElsewhere},
}

// follower notes what it is told.
type follower struct {
	mu       sync.Mutex
	commits  [][]string
	anything int
	holdUp   chan struct{} // while it is not nil and open, Changed does not return
}

func newFollower() *follower { return new(follower) }

// Changed implements store.Follower.
func (f *follower) Changed(keys []string, urgent bool) {
	f.mu.Lock()
	wait := f.holdUp
	f.mu.Unlock()
	if wait != nil {
		<-wait
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	keys = slices.Clone(keys)
	if urgent {
		keys = append(keys, urgently)
	}
	f.commits = append(f.commits, keys)
}

// ChangedAnything implements store.Follower.
func (f *follower) ChangedAnything(bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.anything++
}

// hold has Changed not return until release is called.
func (f *follower) hold() (release func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	held := make(chan struct{})
	f.holdUp = held
	return sync.OnceFunc(func() { close(held) })
}

// told returns the numbers of the commits that it was told of, in that order, and
// the first thing that is wrong.
func (f *follower) told() (numbers []int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, keys := range f.commits {
		n := -1
		for _, key := range keys {
			if text, is := strings.CutPrefix(key, "put/"); is { // the other one that has it is deleted
				number, _ := strconv.Atoi(text)
				n = max(n, number)
			}
		}
		keys = slices.Compact(slices.Sorted(slices.Values(keys)))
		if want := keysOf(n); !slices.Equal(keys, want) && err == nil {
			err = fmt.Errorf("a commit is told as a change of %q, and was one of %q", keys, want)
		}
		numbers = append(numbers, n)
	}
	if f.anything > 0 && err == nil {
		err = errors.New("ChangedAnything was called, though no history was lost")
	}
	return numbers, err
}

// all returns the keys of all commits that it was told of.
func (f *follower) all() [][]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.commits)
}

// knows reports whether it was told of a commit.
func (f *follower) knows(n int) bool {
	numbers, _ := f.told()
	return slices.Contains(numbers, n)
}

// node is one of those that have a database open.
type node struct {
	store.Shared
	follower *follower
}

func (d *database) openShared(t *testing.T) node {
	t.Helper()
	return node{d.open(t).(store.Shared), newFollower()}
}

// node returns one that follows.
func (d *database) node(t *testing.T) node {
	t.Helper()
	n := d.openShared(t)
	if err := n.Follow(t.Context(), n.follower); err != nil {
		t.Fatalf("Follow: %v", err)
	}
	return n
}

// commitNext makes the commit of the next number, which no other has, and returns
// that: so the numbers are in the order of the commits.
func (n node) commitNext(ctx context.Context) (int, error) {
	for range maxTries {
		last, value, err := numberOf(ctx, n, "last")
		if err != nil {
			return 0, err
		}
		next := last + 1
		batch := store.Batch{
			Conditions: []store.Condition{{Key: "last", Value: value}},
			Puts:       records("last", strconv.Itoa(next), putKey(next), ""),
			Urgent:     isUrgent(next),
		}
		if last > 0 {
			batch.Deletes = []string{putKey(last)}
		}
		err = n.Commit(ctx, batch)
		if !errors.Is(err, store.ErrConflict) {
			return next, err
		}
	}
	return 0, errors.New("a commit is in vain for ever")
}

func putKey(n int) string { return fmt.Sprintf("put/%09d", n) }

// urgently is among the keys of a commit, as it is told, that was urgent.
const urgently = "urgently"

func isUrgent(n int) bool { return n%3 == 0 }

// keysOf returns the keys that the commit of a number changes, sorted.
func keysOf(n int) []string {
	keys := []string{"last"}
	if n > 1 {
		keys = append(keys, putKey(n-1))
	}
	keys = append(keys, putKey(n))
	if isUrgent(n) {
		keys = append(keys, urgently)
	}
	return keys
}

// commitMany makes so many commits with each node, from several goroutines.
func commitMany(t *testing.T, each int, nodes ...node) {
	t.Helper()
	var group sync.WaitGroup
	for _, n := range nodes {
		for range 2 {
			group.Go(func() {
				for range each / 2 {
					if _, err := n.commitNext(t.Context()); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	group.Wait()
}

func (n node) await(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := n.Await(ctx); err != nil {
		t.Fatalf("Await: %v", err)
	}
}

// commitAndAwait returns the number of a commit for which all other nodes were
// awaited.
func (n node) commitAndAwait(t *testing.T) int {
	t.Helper()
	number, err := n.commitNext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	n.await(t)
	return number
}

// missing returns an error where a node may serve by what was before a commit for
// which another one has awaited it.
func (n node) missing(number int) error {
	if stale := n.Stale(); stale == nil && !n.follower.knows(number) { // in that order
		return fmt.Errorf("Await has returned, and a node that is not stale was not told of commit %d", number)
	}
	return nil
}

// expectTold fails unless the node was told of the commits from first to one for
// which another node has awaited it, each once and in order.
func (n node) expectTold(t *testing.T, first, last int) {
	t.Helper()
	if err := n.missing(last); err != nil {
		t.Error(err)
	} else {
		eventually(t, "a node that was stale is told what it has missed", func() bool { return n.follower.knows(last) })
	}
	got, err := n.follower.told()
	if err != nil {
		t.Error(err)
	}
	for i, number := range got {
		if number != first+i {
			t.Fatalf("a node was told of commit %d where it should be told of commit %d", number, first+i)
		}
	}
}

// toldQuietly has a quiet commit between two others, which take their turns all the
// same, and awaits it; then one that is urgent, and so not quiet.
func toldQuietly(t *testing.T, d *database) {
	a, b := d.node(t), d.node(t)
	if _, err := a.commitNext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.Commit(t.Context(), store.Batch{Puts: records("quiet", "1"), Quiet: true}); err != nil {
		t.Fatal(err)
	}
	a.await(t)
	eventually(t, "a node is told of a quiet commit", func() bool { return len(b.follower.all()) == 2 })
	if value, err := b.Get(t.Context(), "quiet"); err != nil || string(value) != "1" {
		t.Errorf("Get = %q, %v", value, err)
	}
	a.commitAndAwait(t)
	eventually(t, "a node is told of what follows", func() bool { return len(b.follower.all()) == 3 })
	for i, keys := range b.follower.all() {
		if quiet := i == 1; quiet != (len(keys) == 0) {
			t.Errorf("commit %d was told as one of %q", i+1, keys)
		}
	}
	if err := a.Commit(t.Context(), store.Batch{Puts: records("urgent", "1"), Urgent: true, Quiet: true}); err != nil {
		t.Fatal(err)
	}
	a.await(t)
	if all := b.follower.all(); !slices.Contains(all[len(all)-1], "urgent") {
		t.Errorf("an urgent commit was told as one of %q", all[len(all)-1])
	}
}

func nodesSeeCommits(t *testing.T, d *database) {
	nodes := []node{d.node(t), d.node(t), d.openShared(t)} // one need not follow to see
	for i := range 60 {
		last, err := nodes[i%3].commitNext(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range nodes {
			expect(t, n, map[string]string{"last": strconv.Itoa(last), putKey(last): ""})
		}
	}
}

func nodesCountUp(t *testing.T, d *database) { countUp(t, d.node(t), d.node(t)) }

func toldInOrder(t *testing.T, d *database) {
	a, b := d.node(t), d.node(t)
	commitMany(t, 60, a, b)
	for _, pair := range [][2]node{{a, b}, {b, a}} {
		last := pair[0].commitAndAwait(t)
		pair[1].expectTold(t, 1, last)
	}
}

// followMissesNothing has nodes begin to follow while another commits. What a node
// reads as soon as Follow has returned, it may remember until it is told better.
func followMissesNothing(t *testing.T, d *database) {
	a := d.node(t)
	for range 5 {
		stop, stopped := make(chan struct{}), make(chan struct{})
		before, err := a.commitNext(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer close(stopped)
			for {
				if _, err := a.commitNext(t.Context()); err != nil {
					t.Error(err)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		}()
		b := d.node(t)
		read, _, err := numberOf(t.Context(), b, "last")
		eventually(t, "a commit after Follow has returned", func() bool {
			n, _, err := numberOf(t.Context(), a, "last")
			return err != nil || n > read+5 || t.Failed()
		})
		close(stop)
		<-stopped
		if err != nil || read < before {
			t.Fatalf("a node read commit %d, %v, after commit %d had returned", read, err, before)
		}
		last := a.commitAndAwait(t)
		told, err := b.follower.told()
		if err != nil {
			t.Error(err)
		}
		if len(told) == 0 || told[0] > read+1 {
			t.Fatalf("a node that had read commit %d was told of %d commits, not of the next; the last was %d", read, len(told), last)
		}
		b.expectTold(t, told[0], last)
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}

// awaitAll has commits of one node awaited by it or by another one, and asks a third
// one.
func awaitAll(t *testing.T, d *database) {
	a, b, c := d.node(t), d.node(t), d.node(t)
	var group sync.WaitGroup
	for _, nodes := range [][3]node{{a, b, c}, {b, c, a}, {c, a, b}} {
		group.Go(func() {
			for round := range 20 {
				n, err := nodes[0].commitNext(t.Context())
				if err == nil {
					err = nodes[round%2].Await(t.Context())
				}
				if err == nil {
					err = nodes[2].missing(n)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
}

// awaitHanging has a node hang, as one does whose machine sleeps.
func awaitHanging(t *testing.T, d *database) {
	a, b := d.node(t), d.node(t)
	release := b.follower.hold()
	defer release()
	n := a.commitAndAwait(t)
	if err := b.missing(n); err != nil {
		t.Fatal(err)
	}
	if b.follower.knows(n) {
		t.Fatal("the node does not hang")
	}
	release()
	eventually(t, "a node that hung serves again", func() bool { return b.Stale() == nil })
	b.expectTold(t, 1, n)
	b.expectTold(t, 1, a.commitAndAwait(t))
}

func awaitContext(t *testing.T, d *database) {
	a, b := d.node(t), d.node(t)
	release := b.follower.hold()
	defer release()
	n, err := a.commitNext(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = a.Await(ctx)
	if err == nil {
		err = b.missing(n)
	} else if errors.Is(err, context.Canceled) {
		err = nil
	}
	if err != nil {
		t.Error(err)
	}
}

func awaitEnded(t *testing.T, d *database) {
	a, b := d.node(t), d.node(t)
	p := d.start(t, following)
	if line, more := p.next(); !more {
		_ = p.Wait()
		t.Fatalf("another process ended with %q: %s", line, &p.output)
	}
	commitMany(t, 10, a, b)
	a.await(t)
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	before, _ := b.follower.told()
	commitMany(t, 10, a)
	a.await(t)
	if after, _ := b.follower.told(); len(after) != len(before) {
		t.Error("a follower was told something after Close had returned")
	}
}

func staleUnlessFollowing(t *testing.T, d *database) {
	a := d.openShared(t)
	if err := a.Stale(); err == nil {
		t.Error("a node is not stale before it follows")
	}
	if err := a.Follow(t.Context(), a.follower); err != nil {
		t.Fatalf("Follow: %v", err)
	}
	eventually(t, "a node that follows is not stale", func() bool { return a.Stale() == nil })
	if err := a.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := a.Stale(); err == nil {
		t.Error("a node is not stale after it was closed")
	}
}

func openElsewhere(t *testing.T, d *database) {
	a := d.openShared(t)
	expectElsewhere := func(n node, want int) {
		t.Helper()
		var hosts []string
		eventually(t, fmt.Sprintf("it is open on %d other nodes", want), func() (are bool) {
			var err error
			if hosts, err = n.OpenElsewhere(t.Context()); err != nil {
				t.Fatalf("OpenElsewhere: %v", err)
			}
			return len(hosts) == want
		})
		if slices.Contains(hosts, "") {
			t.Errorf("the hosts are %q", hosts)
		}
	}
	expectElsewhere(a, 0)
	b, c := d.node(t), d.node(t)
	expectElsewhere(a, 2)
	expectElsewhere(c, 1)
	p := d.start(t, following)
	if line, more := p.next(); !more {
		_ = p.Wait()
		t.Fatalf("another process ended with %q: %s", line, &p.output)
	}
	expectElsewhere(c, 2)
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	expectElsewhere(c, 0)
}
