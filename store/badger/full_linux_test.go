package badger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

const volumeEnv = "STORE_TEST_VOLUME"

// onSmallVolume runs the stages of a test on a volume of so many MiB, each in a
// process of its own: writing to a full volume would end the process. A store
// that a stage leaves open is as after a crash.
func onSmallVolume(t *testing.T, mebibytes int, stages ...func(t *testing.T, dir string)) {
	t.Helper()
	if stage, dir, inside := strings.Cut(os.Getenv(volumeEnv), ":"); inside {
		n, err := strconv.Atoi(stage)
		if err != nil {
			t.Fatal(err)
		}
		stages[n](t, dir)
		return
	}
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("only root can mount a volume")
		}
		t.Skip("only root can mount a volume")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mebibytes)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	for n := range stages {
		child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		child.Env = append(os.Environ(), fmt.Sprintf("%s=%d:%s", volumeEnv, n, dir), "GORACE=atexit_sleep_ms=0")
		output, err := child.CombinedOutput()
		if err != nil || !bytes.Contains(output, []byte("--- PASS: "+t.Name())) {
			t.Fatalf("stage %d: %v\n%s", n, err, output)
		}
		t.Logf("stage %d:\n%s", n, output)
	}
}

// fill has a file take all that a volume has left, but for so many bytes.
func fill(t *testing.T, path string, but int64) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	free, err := freeSpace(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	var size int64
	for step := free - but; step >= 4096; step /= 2 { // a file system takes some for itself
		for size+step <= free-but && syscall.Fallocate(int(file.Fd()), 0, size, step) == nil {
			size += step
		}
	}
}

// revocation is what a revocation writes, about.
func revocation(n int) store.Batch {
	key := fmt.Sprintf("revoked/%06d", n)
	return store.Batch{Puts: records(key, strings.Repeat("r", 600)), Deletes: []string{"listed/" + key}, Urgent: true}
}

// revokeTillRefused returns how many revocations the store took.
func revokeTillRefused(t *testing.T, st store.Store, from int) (n int) {
	t.Helper()
	for n = from; n < from+100_000; n++ {
		err := st.Commit(t.Context(), revocation(n))
		if errors.Is(err, store.ErrFull) {
			return n
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("the volume is never full")
	return 0
}

func wantFull(t *testing.T, err error, dir string) {
	t.Helper()
	if !errors.Is(err, store.ErrFull) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "make room") {
		t.Errorf("the error is %v, want ErrFull with the directory and the mend", err)
	}
}

func wantRevocations(t *testing.T, st store.Store, n int) {
	t.Helper()
	if got := len(contents(t, st, "revoked/")); got != n {
		t.Errorf("%d revocations are there, want %d", got, n)
	}
}

// gauge returns what the gauge shows.
func gauge(t *testing.T) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(storeFull)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families[0].GetMetric()[0].GetGauge().GetValue()
}

func TestAStoreThatFillsItsVolumeRefusesWhatIsNotUrgent(t *testing.T) {
	onSmallVolume(t, 128, func(t *testing.T, dir string) {
		st := openIn(t, dir)
		var acknowledged sync.Map
		var group sync.WaitGroup
		for w := range writers {
			group.Go(func() {
				for n := 0; ; n++ {
					key := fmt.Sprintf("%d/%d", w, n)
					err := st.Commit(context.Background(), store.Batch{Puts: records(key, strings.Repeat(key, 1000))})
					if err != nil {
						wantFull(t, err, dir)
						return
					}
					acknowledged.Store(key, true)
				}
			})
		}
		group.Wait()
		if gauge(t) != 1 {
			t.Error("the gauge does not say that the store is full")
		}
		for n := range 1000 {
			if err := st.Commit(t.Context(), revocation(n)); err != nil {
				t.Fatalf("revocation %d: %v", n, err)
			}
		}
		check := func(st store.Store) {
			wantRevocations(t, st, 1000)
			n := 0
			acknowledged.Range(func(key, _ any) bool {
				n++
				if got, err := st.Get(t.Context(), key.(string)); err != nil || string(got) != strings.Repeat(key.(string), 1000) {
					t.Errorf("Get(%s) = %d bytes, %v", key, len(got), err)
				}
				return !t.Failed()
			})
			t.Logf("%d records were acknowledged", n)
		}
		check(st)
		if err := st.Close(); err != nil {
			t.Fatal(err)
		}
		check(openIn(t, dir))
	})
}

// Another process takes all that is left: so much as the log has room for can be
// revoked, and then as much again in place of the ballast.
func TestAVolumeThatAnotherFillsTakesRevocationsDownToTheReserve(t *testing.T) {
	const sure = 10_000
	onSmallVolume(t, 96, func(t *testing.T, dir string) {
		st := openIn(t, dir)
		put(t, st, "a", "1")
		fill(t, filepath.Join(dir, "foreign"), 0)
		wantFull(t, st.Commit(t.Context(), store.Batch{Puts: records("b", "2")}), dir)
		revoked := revokeTillRefused(t, st, 0)
		t.Logf("%d revocations", revoked)
		if revoked < sure {
			t.Errorf("%d revocations, want %d at least", revoked, sure)
		}
		fill(t, filepath.Join(dir, "more"), 0) // what the ballast has left
		wantFull(t, st.Commit(t.Context(), revocation(revoked)), dir)
		if got, err := st.Get(t.Context(), "a"); err != nil || string(got) != "1" {
			t.Errorf("Get = %q, %v", got, err)
		}
		wantRevocations(t, st, revoked)
		wantFull(t, st.Close(), dir) // it would write a table
	}, func(t *testing.T, dir string) {
		_, err := provisioned(t, dir).Open(t.Context())
		wantFull(t, err, dir)
	}, func(t *testing.T, dir string) {
		for _, name := range []string{"foreign", "more"} {
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Error(err)
			}
		}
		st := openIn(t, dir)
		if n := len(contents(t, st, "revoked/")); n < sure {
			t.Errorf("%d revocations are there after a restart, want %d at least", n, sure)
		}
		put(t, st, "b", "2")
		if got, err := st.Get(t.Context(), "a"); err != nil || string(got) != "1" {
			t.Errorf("Get = %q, %v", got, err)
		}
	})
}

func TestAStoreThatWasFullTakesChangesWhenRoomReturns(t *testing.T) {
	onSmallVolume(t, 160, func(t *testing.T, dir string) {
		st := openIn(t, dir)
		foreign := filepath.Join(dir, "foreign")
		for round := range 3 {
			fill(t, foreign, 0)
			wantFull(t, st.Commit(t.Context(), store.Batch{Puts: records("b", "2")}), dir)
			revoked := revokeTillRefused(t, st, round*1_000_000)
			if taken(filepath.Join(dir, ballastFile)) != 0 {
				t.Error("the ballast was not given up")
			}
			wantFull(t, st.Commit(t.Context(), revocation(revoked)), dir)
			if err := os.Remove(foreign); err != nil {
				t.Fatal(err)
			}
			put(t, st, fmt.Sprintf("round/%d", round), "x")
			if taken(filepath.Join(dir, ballastFile)) < ballastSize {
				t.Error("the ballast was not made again")
			}
		}
		if n := len(contents(t, st, "round/")); n != 3 {
			t.Errorf("%d rounds were kept", n)
		}
	})
}

// Nobody writes: the gauge tells all the same.
func TestTheGaugeFollowsTheVolume(t *testing.T) {
	onSmallVolume(t, 96, func(t *testing.T, dir string) {
		openIn(t, dir)
		foreign := filepath.Join(dir, "foreign")
		want := func(value float64) {
			t.Helper()
			for deadline := time.Now().Add(10 * time.Second); gauge(t) != value; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("the gauge is not %v", value)
				}
			}
		}
		want(0)
		fill(t, foreign, 0)
		want(1)
		if err := os.Remove(foreign); err != nil {
			t.Fatal(err)
		}
		want(0)
	})
}

func TestAStoreIsNotMadeOnAFullVolume(t *testing.T) {
	onSmallVolume(t, 64, func(t *testing.T, dir string) {
		fill(t, filepath.Join(dir, "foreign"), 8<<20)
		_, err := provisioned(t, filepath.Join(dir, "new")).Open(t.Context())
		wantFull(t, err, filepath.Join(dir, "new"))
	})
}

// A Caddy that is started again on a full volume serves its sites.
func TestTheBallastLetsAStoreOpenOnAFullVolume(t *testing.T) {
	onSmallVolume(t, 96, func(t *testing.T, dir string) {
		st, err := provisioned(t, dir).Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for n := range 1000 {
			if err := st.Commit(t.Context(), revocation(n)); err != nil {
				t.Fatal(err)
			}
		}
		fill(t, filepath.Join(dir, "foreign"), 0)
	}, func(t *testing.T, dir string) {
		st := openIn(t, dir)
		wantRevocations(t, st, 1000)
		wantFull(t, st.Commit(t.Context(), store.Batch{Puts: records("b", "2")}), dir)
		if err := st.Commit(t.Context(), revocation(1000)); err != nil {
			t.Error(err)
		}
		wantRevocations(t, st, 1001)
	})
}

// commitTillItFails commits records of 100 KB, which fill a log soon, and returns
// how many there are, and what came instead of the next.
func commitTillItFails(t *testing.T, st store.Store) (n int, err error) {
	t.Helper()
	for n = range 1000 {
		batch := store.Batch{Puts: records(fmt.Sprintf("many/%d", n), strings.Repeat("x", 100_000)), Urgent: true}
		if err := st.Commit(t.Context(), batch); err != nil {
			return n, err
		}
	}
	t.Fatal("it never fails")
	return 0, nil
}

// Where Badger could not make a log, it has none, and reading panics.
func TestALogThatCannotBeMadeEndsNeitherTheProcessNorWhatWasAcknowledged(t *testing.T) {
	inAProcessOfItsOwn(t, func(t *testing.T) {
		dir := t.TempDir()
		st := openIn(t, dir)
		put(t, st, "a", "1")
		giveBack := takeAllFiles(t)
		t.Cleanup(giveBack) // or a test that fails never ends
		n, err := commitTillItFails(t, st)
		if err == nil || !strings.Contains(err.Error(), "start it again") {
			t.Errorf("the error does not name the mend: %v", err)
		}
		if err := st.Commit(t.Context(), store.Batch{Puts: records("b", "2"), Urgent: true}); err == nil {
			t.Error("a change was acknowledged after one that could not be written")
		}
		_, _ = st.Get(t.Context(), "a")
		_ = st.Scan(t.Context(), "", func(string, []byte) error { return nil })
		giveBack()
		if err := st.Close(); err != nil {
			t.Error(err)
		}
		again := openIn(t, dir)
		if got := len(contents(t, again, "many/")); got != n {
			t.Errorf("%d records are there, want %d", got, n)
		}
		put(t, again, "b", "2")
	})
}

// takeAllFiles opens as many files as the process may.
func takeAllFiles(t *testing.T) (giveBack func()) {
	t.Helper()
	limit := syscall.Rlimit{Cur: 100, Max: 100}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	var files []*os.File
	for {
		file, err := os.Open(os.DevNull)
		if errors.Is(err, syscall.EMFILE) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	return func() {
		for _, file := range files {
			_ = file.Close()
		}
	}
}

func TestAVolumeThatTakesNoMoreFilesIsFull(t *testing.T) {
	onSmallVolume(t, 160, func(t *testing.T, dir string) {
		if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT, "nr_inodes=200"); err != nil {
			t.Fatal(err)
		}
		st := openIn(t, dir)
		put(t, st, "a", "1")
		foreign := filepath.Join(dir, "foreign")
		if err := os.Mkdir(foreign, 0o700); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(foreign) }) // or a test that fails never ends
		var err error
		for n := 0; err == nil; n++ {
			err = os.WriteFile(filepath.Join(foreign, fmt.Sprint(n)), nil, 0o600)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
		wantFull(t, st.Commit(t.Context(), store.Batch{Puts: records("b", "2")}), dir)
		n, err := commitTillItFails(t, st)
		wantFull(t, err, dir)
		if got := len(contents(t, st, "many/")); got != n {
			t.Errorf("%d records are there, want %d", got, n)
		}
		if err := os.RemoveAll(foreign); err != nil {
			t.Fatal(err)
		}
		put(t, st, "b", "2")
	})
}

// Each change looks after the ballast: where it can't be made, that takes time and
// a line of the log.
func TestABallastThatCannotBeMadeIsNotTriedWithEachChange(t *testing.T) {
	dir := t.TempDir()
	ballast := filepath.Join(dir, ballastFile)
	if err := os.Symlink("/dev/full", ballast); err != nil { // it takes nothing, and is removed
		t.Fatal(err)
	}
	st := openIn(t, dir)
	put(t, st, "a", "1")
	if taken(ballast) != 0 {
		t.Error("it was tried again at once")
	}
	if err := st.Close(); err != nil { // then nobody else uses its guard
		t.Fatal(err)
	}
	st.guard.noBallast = time.Now().Add(-2 * ballastPause)
	st.guard.look()
	if taken(ballast) < ballastSize {
		t.Error("it was not tried again later")
	}
}
