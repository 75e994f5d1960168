package storetest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

const (
	// roleVariable names the environment variable that says, in a process that is
	// going to be killed, what it shall do.
	roleVariable = "STORETEST_ROLE"
	// whereVariable says on which database.
	whereVariable = "STORETEST_WHERE"
)

const (
	committing = "commit" // until it is killed, and say what was acknowledged
	following  = "follow" // a shared store until it is killed
)

const (
	workers = 8 // of a process that is killed
	// perBatch is how many records each of their batches has.
	perBatch = 20
)

// live does in a process of its own what its role is, until it is killed, or the one
// that started it has ended.
func live(t *testing.T, role string, open func(ctx context.Context, where string) (store.Store, error)) {
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(2)
	}()
	st, err := open(t.Context(), os.Getenv(whereVariable))
	if err != nil {
		t.Fatalf("opening in another process: %v", err)
	}
	if role == following {
		if err := st.(store.Shared).Follow(t.Context(), newFollower()); err != nil {
			t.Fatalf("Follow in another process: %v", err)
		}
		tell("follows")
		select {}
	}
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for {
				n, err := step(t.Context(), st, w)
				if err != nil {
					t.Errorf("in another process: %v", err)
					return
				}
				tell(w, n)
			}
		})
	}
	group.Wait()
}

// said begins each line of what another process tells.
const said = "storetest:"

// tell says something in one piece.
func tell(words ...any) { _, _ = os.Stdout.WriteString(said + " " + fmt.Sprintln(words...)) }

// step replaces all records of a worker by others, and returns the number of the step.
func step(ctx context.Context, st store.Store, worker int) (n int, err error) {
	key := fmt.Sprintf("steps/%d", worker)
	n, value, err := numberOf(ctx, st, key)
	if err != nil {
		return 0, err
	}
	n++
	batch := store.Batch{Conditions: []store.Condition{{Key: key, Value: value}}, Puts: records(key, strconv.Itoa(n))}
	for i := range perBatch {
		batch.Puts = append(batch.Puts, records(recordOf(worker, n, i), strconv.Itoa(n))...)
		batch.Deletes = append(batch.Deletes, recordOf(worker, n-1, i))
	}
	return n, st.Commit(ctx, batch)
}

func recordOf(worker, n, i int) string { return fmt.Sprintf("records/%d/%d/%d", worker, n, i) }

// process is the test's own program in another role.
type process struct {
	*exec.Cmd
	lines  *bufio.Scanner // what it tells
	output bytes.Buffer   // everything else
}

func (d *database) start(t *testing.T, role string) *process {
	t.Helper()
	names := strings.Split(t.Name(), "/")
	names = names[:len(names)-1] // up to where Run is called
	for n := range names {
		names[n] = "^" + regexp.QuoteMeta(names[n]) + "$"
	}
	p := &process{Cmd: exec.Command(os.Args[0], "-test.run="+strings.Join(names, "/"), "-test.count=1")}
	p.Env = append(os.Environ(), roleVariable+"="+role, whereVariable+"="+d.where)
	p.Stderr = &p.output
	stdin, err := p.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.lines = bufio.NewScanner(stdout)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = p.Process.Kill()
		_ = p.Wait()
	})
	return p
}

// next returns the next that the process tells, if it tells any more.
func (p *process) next() (line string, more bool) {
	for p.lines.Scan() {
		if line, is := strings.CutPrefix(p.lines.Text(), said+" "); is {
			return line, true
		}
		fmt.Fprintln(&p.output, p.lines.Text())
	}
	return "", false
}

func killed(t *testing.T, d *database) {
	acknowledged := map[int]int{} // the last step of each worker
	for range 3 {
		p := d.start(t, committing)
		for count := 0; ; count++ {
			line, more := p.next() // what was told before the end counts, too
			if !more {
				if count < 200 {
					_ = p.Wait()
					t.Fatalf("it ended by itself, after %d steps: %s", count, &p.output)
				}
				break
			}
			if count == 200 {
				if err := p.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			var w, n int
			if _, err := fmt.Sscan(line, &w, &n); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			acknowledged[w] = n
		}
		_ = p.Wait()
		checkSteps(t, d, acknowledged)
	}
}

// checkSteps fails unless of each worker all that it had acknowledged is there, and
// the next step whole or not at all.
func checkSteps(t *testing.T, d *database, acknowledged map[int]int) {
	t.Helper()
	st := d.open(t)
	want := map[string]string{}
	for w := range workers {
		last := acknowledged[w]
		key := fmt.Sprintf("steps/%d", w)
		n, _, err := numberOf(t.Context(), st, key)
		if err != nil || n != last && n != last+1 {
			t.Fatalf("worker %d is at step %d, %v, and had acknowledged step %d", w, n, err, last)
		}
		if n == 0 {
			continue
		}
		want[key] = strconv.Itoa(n)
		for i := range perBatch {
			want[recordOf(w, n, i)] = strconv.Itoa(n)
		}
	}
	expect(t, st, want)
	if err := st.Close(); err != nil {
		t.Error(err)
	}
}
