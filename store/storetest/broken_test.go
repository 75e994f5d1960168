//go:build unix

package storetest

import (
	"context"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

func TestASoundEnginePasses(t *testing.T) { Run(t, newDirectory, openJournal) }

// brokenEngines are sound but for one fault, each.
var brokenEngines = map[string]struct {
	fault func(sound store.Shared) store.Store
	fails []string // the checks that are sure to find it
}{
	"loses every hundredth change": {
		func(sound store.Shared) store.Store { return &forgetful{Shared: sound} },
		[]string{"EveryCommitIsCarriedOut", "ManyAtOnceDisturbNobody"},
	},
	"acknowledges before it writes": {nil, []string{"AKilledProcessLosesNothing"}}, // see openHasty
	"carries batches out piece by piece": {
		func(sound store.Shared) store.Store { return piecemeal{sound} },
		[]string{"ABatchIsSeenWholeOrNotAtAll", "AKilledProcessLosesNothing", "EachNodeIsToldOfEachCommitInOrder"},
	},
	"writes before it checks conditions": {
		func(sound store.Shared) store.Store { return rash{sound} },
		[]string{"ABatchNeedsAllItsConditions"},
	},
	"takes an empty value for none": {
		func(sound store.Shared) store.Store { return blurred{sound} },
		[]string{"ABatchNeedsAllItsConditions"},
	},
	"checks conditions some time before it writes": {
		func(sound store.Shared) store.Store { return slack{sound} },
		[]string{"ConditionsHoldAmongConcurrentCommits", "OfCommitsThatExcludeEachOtherOneWins", "ConditionsHoldAmongNodes"},
	},
	"returns what it keeps itself": {
		func(sound store.Shared) store.Store { return &sharing{Shared: sound} },
		[]string{"ValuesAreCopies"},
	},
	"scans in another order": {
		func(sound store.Shared) store.Store { return unordered{sound} },
		[]string{"ScanGivesAPrefixInTheOrderOfBytes", "ScanFromLeavesOutWhatSortsBefore"},
	},
	"takes a prefix for a pattern": {
		func(sound store.Shared) store.Store { return pattern{sound} },
		[]string{"ScanGivesAPrefixInTheOrderOfBytes", "ScanFromLeavesOutWhatSortsBefore"},
	},
	"scans in more than one view": {
		func(sound store.Shared) store.Store { return paged{sound} },
		[]string{"ScanSeesOneMoment"},
	},
	"lets a scan hold up commits": {
		func(sound store.Shared) store.Store { return &exclusive{Shared: sound} },
		[]string{"ScanSeesOneMoment"},
	},
	"goes on after a scan's function has failed": {
		func(sound store.Shared) store.Store { return stubborn{sound} },
		[]string{"ScanEndsWithItsFunctionsError"},
	},
	"minds no context": {
		func(sound store.Shared) store.Store { return heedless{sound} },
		[]string{"AContextThatEndedEndsEveryCall"},
	},
	"closes under a scan": {
		func(sound store.Shared) store.Store { return hurried{sound} },
		[]string{"CloseWaitsForWhatIsUnderWay"},
	},
	"goes on when it is closed": {
		func(sound store.Shared) store.Store { return open{sound} },
		[]string{"AfterCloseEveryCallSaysSo", "CloseUnderLoadLosesNothing"},
	},
	"ends keys at a zero byte": {
		func(sound store.Shared) store.Store { return texts{sound} },
		[]string{"GetReturnsWhatWasPut"},
	},
	"takes small batches alone": {
		func(sound store.Shared) store.Store { return small{sound} },
		[]string{"LargeBatchesAreTaken"},
	},
	"leaves out what it does not take": {
		func(sound store.Shared) store.Store { return silent{sound} },
		[]string{"WhatIsBeyondTheBoundsIsRefusedWhole"},
	},
	"has the first change of a key count": {
		func(sound store.Shared) store.Store { return first{sound} },
		[]string{"OfChangesOfOneKeyTheLastCounts"},
	},
	"reads what was there a moment ago": {
		func(sound store.Shared) store.Store { return &lagging{Shared: sound} },
		[]string{"EachNodeSeesWhatAnyHasCommitted"},
	},
	"has gaps in its feed": {
		func(sound store.Shared) store.Store {
			return fed{sound, func(f store.Follower) store.Follower { return &gaps{Follower: f} }}
		},
		[]string{"EachNodeIsToldOfEachCommitInOrder", "ANodeThatBeginsToFollowMissesNothing", "AwaitReturnsWhenAllNodesKnow"},
	},
	"tells of commits in another order": {
		func(sound store.Shared) store.Store {
			return fed{sound, func(f store.Follower) store.Follower { return &swapped{Follower: f} }}
		},
		[]string{"EachNodeIsToldOfEachCommitInOrder"},
	},
	"tells of puts alone": {
		func(sound store.Shared) store.Store {
			return fed{sound, func(f store.Follower) store.Follower { return putsAlone{f} }}
		},
		[]string{"EachNodeIsToldOfEachCommitInOrder"},
	},
	"tells of no commit that it is urgent": {
		func(sound store.Shared) store.Store {
			return fed{sound, func(f store.Follower) store.Follower { return calm{f} }}
		},
		[]string{"EachNodeIsToldOfEachCommitInOrder"},
	},
	"tells of quiet commits as of any": {
		func(sound store.Shared) store.Store { return loud{sound} },
		[]string{"AQuietCommitIsToldWithoutItsKeys"},
	},
	"is quiet of what is urgent": {
		func(sound store.Shared) store.Store { return hushed{sound} },
		[]string{"AQuietCommitIsToldWithoutItsKeys"},
	},
	"follows only some time after Follow": {
		func(sound store.Shared) store.Store { return late{sound} },
		[]string{"ANodeThatBeginsToFollowMissesNothing"},
	},
	"awaits nobody": {
		func(sound store.Shared) store.Store { return impatient{sound} },
		[]string{"AwaitReturnsWhenAllNodesKnow", "ANodeThatHangsIsStaleBeforeAwaitReturns"},
	},
	"says that it has awaited when it had no time to": {
		func(sound store.Shared) store.Store { return pressed{sound} },
		[]string{"AwaitEndsWithItsContext"},
	},
	"awaits its own commits alone": {
		func(sound store.Shared) store.Store { return &selfish{Shared: sound} },
		[]string{"AwaitReturnsWhenAllNodesKnow"},
	},
	"awaits the dead": {
		func(sound store.Shared) store.Store { return faithful{sound} },
		[]string{"AwaitWaitsForNoNodeThatHasEnded"},
	},
	"does not say who has it open": {
		func(sound store.Shared) store.Store { return discreet{sound} },
		[]string{"WhoElseHasTheStoreOpenIsTold"},
	},
	"is never stale": {
		func(sound store.Shared) store.Store { return confident{sound} },
		[]string{"ANodeThatHangsIsStaleBeforeAwaitReturns", "ANodeIsStaleUnlessItFollows"},
	},
}

// brokenVariable names the environment variable that says which of them is tried.
const brokenVariable = "STORETEST_BROKEN"

func TestABrokenEngineFailsTheChecksOfWhatItBreaks(t *testing.T) {
	if name := os.Getenv(brokenVariable); name != "" {
		patience = 5 * time.Second // what is broken may never happen
		Run(t, newDirectory, openBroken(name))
		return
	}
	failed := regexp.MustCompile(`--- FAIL: ` + t.Name() + `/(\S+)`)
	for name, broken := range brokenEngines {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test, _, _ := strings.Cut(t.Name(), "/")
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.v", "-test.count=1", "-test.timeout=5m",
				"-test.run=^"+test+"$/^("+strings.Join(broken.fails, "|")+")$")
			cmd.Env = append(os.Environ(), brokenVariable+"="+name)
			output, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			var fails []string
			for _, match := range failed.FindAllSubmatch(output, -1) {
				fails = append(fails, string(match[1]))
			}
			slices.Sort(fails)
			if want := slices.Sorted(slices.Values(broken.fails)); !slices.Equal(fails, want) {
				t.Errorf("%q have failed, want %q: %s", fails, want, output)
			}
		})
	}
}

func TestEachCheckHasAnEngineThatFailsIt(t *testing.T) {
	for _, c := range slices.Concat(checks, sharedChecks) {
		found := false
		for _, broken := range brokenEngines {
			found = found || slices.Contains(broken.fails, c.name)
		}
		if !found {
			t.Errorf("nothing shows that %s finds anything", c.name)
		}
	}
}

func openBroken(name string) func(ctx context.Context, dir string) (store.Store, error) {
	broken := brokenEngines[name]
	if broken.fault == nil {
		return openHasty
	}
	return func(ctx context.Context, dir string) (store.Store, error) {
		sound, err := openJournal(ctx, dir)
		if err != nil {
			return nil, err
		}
		return broken.fault(sound.(store.Shared)), nil
	}
}

// openHasty opens a store that has written what it has acknowledged only when it is
// closed.
func openHasty(ctx context.Context, dir string) (store.Store, error) {
	memory, err := os.MkdirTemp("", "")
	if err == nil {
		err = os.CopyFS(memory, os.DirFS(dir))
	}
	if err != nil {
		return nil, err
	}
	sound, err := openJournal(ctx, memory)
	return &hasty{Store: sound, from: memory, to: dir}, err
}

type hasty struct {
	store.Store // alone: two nodes would have nothing in common
	from, to    string
	once        sync.Once
}

func (h *hasty) Close() error {
	err := h.Store.Close()
	h.once.Do(func() {
		_ = os.Remove(h.to + "/commits") // which CopyFS does not replace
		err = errors.Join(err, os.CopyFS(h.to, os.DirFS(h.from)), os.RemoveAll(h.from))
	})
	return err
}

type forgetful struct {
	store.Shared
	commits atomic.Int32
}

func (f *forgetful) Commit(ctx context.Context, batch store.Batch) error {
	if f.commits.Add(1)%100 == 0 {
		batch = store.Batch{Conditions: batch.Conditions}
	}
	return f.Shared.Commit(ctx, batch)
}

type piecemeal struct{ store.Shared }

func (p piecemeal) Commit(ctx context.Context, batch store.Batch) error {
	err := p.Shared.Commit(ctx, store.Batch{Conditions: batch.Conditions})
	for _, record := range batch.Puts {
		if err == nil {
			err = p.Shared.Commit(ctx, store.Batch{Puts: []store.Record{record}})
		}
	}
	for _, key := range batch.Deletes {
		if err == nil {
			err = p.Shared.Commit(ctx, store.Batch{Deletes: []string{key}})
		}
	}
	return err
}

type rash struct{ store.Shared }

func (r rash) Commit(ctx context.Context, batch store.Batch) error {
	check := r.Shared.Commit(ctx, store.Batch{Conditions: batch.Conditions})
	batch.Conditions = nil
	return errors.Join(r.Shared.Commit(ctx, batch), check)
}

type blurred struct{ store.Shared }

func (b blurred) Commit(ctx context.Context, batch store.Batch) error {
	batch.Conditions = slices.Clone(batch.Conditions)
	for n, condition := range batch.Conditions {
		if len(condition.Value) == 0 {
			batch.Conditions[n].Value = nil
		}
	}
	return b.Shared.Commit(ctx, batch)
}

type slack struct{ store.Shared }

func (s slack) Commit(ctx context.Context, batch store.Batch) error {
	if err := s.Shared.Commit(ctx, store.Batch{Conditions: batch.Conditions}); err != nil {
		return err
	}
	time.Sleep(100 * time.Microsecond)
	batch.Conditions = nil
	return s.Shared.Commit(ctx, batch)
}

type sharing struct {
	store.Shared
	kept sync.Map
}

func (s *sharing) Get(ctx context.Context, key string) ([]byte, error) {
	value, err := s.Shared.Get(ctx, key)
	if kept, found := s.kept.Load(key); err == nil && found && len(kept.([]byte)) == len(value) {
		return kept.([]byte), nil
	}
	s.kept.Store(key, value)
	return value, err
}

type unordered struct{ store.Shared }

func (u unordered) Scan(ctx context.Context, prefix string, fn func(key string, value []byte) error) error {
	return u.ScanFrom(ctx, prefix, prefix, fn)
}

// ScanFrom sorts as an alphabet does.
func (u unordered) ScanFrom(ctx context.Context, prefix, from string, fn func(key string, value []byte) error) error {
	all := map[string][]byte{}
	err := u.Shared.ScanFrom(ctx, prefix, from, func(key string, value []byte) error {
		all[key] = value
		return nil
	})
	keys := slices.SortedFunc(maps.Keys(all), func(a, b string) int {
		return strings.Compare(strings.ToLower(a), strings.ToLower(b))
	})
	for _, key := range keys {
		if err := errors.Join(ctx.Err(), fn(key, all[key])); err != nil {
			return err
		}
	}
	return err
}

type pattern struct{ store.Shared }

func (p pattern) Scan(ctx context.Context, prefix string, fn func(key string, value []byte) error) error {
	return p.ScanFrom(ctx, prefix, "", fn)
}

func (p pattern) ScanFrom(ctx context.Context, prefix, from string, fn func(key string, value []byte) error) error {
	text := strings.NewReplacer("%", "(?s:.*)", "_", "(?s:.)").Replace(regexp.QuoteMeta(prefix))
	like, err := regexp.Compile("^" + text)
	if err != nil {
		return p.Shared.ScanFrom(ctx, prefix, from, fn)
	}
	return p.Shared.ScanFrom(ctx, "", from, func(key string, value []byte) error {
		if !like.MatchString(key) {
			return nil
		}
		return fn(key, value)
	})
}

type paged struct{ store.Shared }

func (p paged) Scan(ctx context.Context, prefix string, fn func(key string, value []byte) error) error {
	return p.ScanFrom(ctx, prefix, prefix, fn)
}

// ScanFrom takes some records at a time.
func (p paged) ScanFrom(ctx context.Context, prefix, from string, fn func(key string, value []byte) error) error {
	page := errors.New("page")
	for n := 0; ; n = 0 {
		err := p.Shared.ScanFrom(ctx, prefix, from, func(key string, value []byte) error {
			if n++; n > 500 {
				return page
			}
			from = key + "\x00"
			return fn(key, value)
		})
		if !errors.Is(err, page) {
			return err
		}
	}
}

type exclusive struct {
	store.Shared
	mu sync.RWMutex
}

func (e *exclusive) Scan(ctx context.Context, prefix string, fn func(key string, value []byte) error) error {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.Shared.Scan(ctx, prefix, fn)
}

func (e *exclusive) Commit(ctx context.Context, batch store.Batch) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.Shared.Commit(ctx, batch)
}

type stubborn struct{ store.Shared }

func (s stubborn) Scan(ctx context.Context, prefix string, fn func(key string, value []byte) error) error {
	var first error
	err := s.Shared.Scan(ctx, prefix, func(key string, value []byte) error {
		if err := fn(key, value); first == nil {
			first = err
		}
		return nil
	})
	return errors.Join(err, first)
}

type heedless struct{ store.Shared }

func (h heedless) Get(ctx context.Context, key string) ([]byte, error) {
	return h.Shared.Get(context.WithoutCancel(ctx), key)
}

type hurried struct{ store.Shared }

func (h hurried) Close() error {
	go func() { _ = h.Shared.Close() }()
	return nil
}

type open struct{ store.Shared }

func (o open) Close() error { return nil }

type texts struct{ store.Shared }

func (x texts) Commit(ctx context.Context, batch store.Batch) error {
	batch.Puts = slices.Clone(batch.Puts)
	for n := range batch.Puts {
		batch.Puts[n].Key, _, _ = strings.Cut(batch.Puts[n].Key, "\x00")
	}
	return x.Shared.Commit(ctx, batch)
}

type small struct{ store.Shared }

func (s small) Commit(ctx context.Context, batch store.Batch) error {
	for _, record := range batch.Puts {
		if len(record.Value) > 1<<19 {
			return errors.New("a value is too long")
		}
	}
	return s.Shared.Commit(ctx, batch)
}

type silent struct{ store.Shared }

func (s silent) Commit(ctx context.Context, batch store.Batch) error {
	batch.Puts = slices.DeleteFunc(slices.Clone(batch.Puts), func(r store.Record) bool {
		return len(r.Key) > store.MaxKey || len(r.Value) > store.MaxValue
	})
	return s.Shared.Commit(ctx, batch)
}

type first struct{ store.Shared }

func (f first) Commit(ctx context.Context, batch store.Batch) error {
	var puts []store.Record
	seen := map[string]bool{}
	for _, record := range batch.Puts {
		if !seen[record.Key] {
			puts = append(puts, record)
		}
		seen[record.Key] = true
	}
	batch.Puts = puts
	return f.Shared.Commit(ctx, batch)
}

// lagging keeps what it has read until it writes itself.
type lagging struct {
	store.Shared
	read sync.Map
}

func (l *lagging) Get(ctx context.Context, key string) ([]byte, error) {
	if value, found := l.read.Load(key); found && ctx.Err() == nil {
		return slices.Clone(value.([]byte)), nil
	}
	value, err := l.Shared.Get(ctx, key)
	if err == nil {
		l.read.Store(key, slices.Clone(value))
	}
	return value, err
}

func (l *lagging) Commit(ctx context.Context, batch store.Batch) error {
	defer l.read.Clear()
	return l.Shared.Commit(ctx, batch)
}

// fed has a follower told otherwise.
type fed struct {
	store.Shared
	wrap func(store.Follower) store.Follower
}

func (f fed) Follow(ctx context.Context, follower store.Follower) error {
	return f.Shared.Follow(ctx, f.wrap(follower))
}

type gaps struct {
	store.Follower
	commits int
}

func (g *gaps) Changed(keys []string, urgent bool) {
	if g.commits++; g.commits%5 != 0 {
		g.Follower.Changed(keys, urgent)
	}
}

type swapped struct {
	store.Follower
	commits int
	held    func()
}

func (s *swapped) Changed(keys []string, urgent bool) {
	tell := func() { s.Follower.Changed(keys, urgent) }
	if s.commits++; s.commits%10 == 0 {
		s.held = tell
		return
	}
	tell()
	if s.held != nil {
		s.held()
		s.held = nil
	}
}

type putsAlone struct{ store.Follower }

func (p putsAlone) Changed(keys []string, urgent bool) {
	p.Follower.Changed(keys[:min(2, len(keys))], urgent)
}

type calm struct{ store.Follower }

func (c calm) Changed(keys []string, _ bool) { c.Follower.Changed(keys, false) }

type loud struct{ store.Shared }

func (l loud) Commit(ctx context.Context, batch store.Batch) error {
	batch.Quiet = false
	return l.Shared.Commit(ctx, batch)
}

type hushed struct{ store.Shared }

func (h hushed) Commit(ctx context.Context, batch store.Batch) error {
	batch.Urgent = batch.Urgent && !batch.Quiet
	return h.Shared.Commit(ctx, batch)
}

type late struct{ store.Shared }

func (l late) Follow(ctx context.Context, follower store.Follower) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	time.AfterFunc(20*time.Millisecond, func() { _ = l.Shared.Follow(context.WithoutCancel(ctx), follower) })
	return nil
}

type impatient struct{ store.Shared }

func (i impatient) Await(ctx context.Context) error { return ctx.Err() }

type pressed struct{ store.Shared }

func (p pressed) Await(ctx context.Context) error {
	err := p.Shared.Await(ctx)
	if errors.Is(err, ctx.Err()) {
		return nil
	}
	return err
}

type selfish struct {
	store.Shared
	committed atomic.Bool
}

func (s *selfish) Commit(ctx context.Context, batch store.Batch) error {
	defer s.committed.Store(true)
	return s.Shared.Commit(ctx, batch)
}

func (s *selfish) Await(ctx context.Context) error {
	if !s.committed.Swap(false) {
		return nil
	}
	return s.Shared.Await(ctx)
}

type discreet struct{ store.Shared }

func (d discreet) OpenElsewhere(context.Context) ([]string, error) { return nil, nil }

type faithful struct{ store.Shared }

// Await waits for nodes that were killed, too, as if they could be slow.
func (f faithful) Await(ctx context.Context) error {
	if err := f.Shared.Await(ctx); err != nil {
		return err
	}
	nodes, err := filepath.Glob(filepath.Join(f.Shared.(*journal).dir, "node-*"))
	for _, node := range nodes {
		if info, err := os.Stat(node); err == nil && time.Since(info.ModTime()) > lease {
			<-ctx.Done()
			return ctx.Err()
		}
	}
	return err
}

type confident struct{ store.Shared }

func (c confident) Stale() error { return nil }
