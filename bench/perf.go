package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const instructions = "instructions:u"

// perfCounts tells whether perf is there and this machine lets it count.
func perfCounts() bool {
	out, err := exec.Command("perf", "stat", "-x,", "-e", instructions, "--", "true").CombinedOutput() //nolint:noctx // returns at once
	return err == nil && perfValue(out) > 0
}

// counter is a perf that counts the instructions of a server.
type counter struct {
	cmd *exec.Cmd
	out bytes.Buffer
}

func (b *bench) countInstructions(ctx context.Context, s *server) *counter {
	if !b.counts {
		return nil
	}
	pids := strings.Trim(strings.ReplaceAll(fmt.Sprint(s.pids()), " ", ","), "[]")
	c := &counter{cmd: exec.CommandContext(ctx, "perf", "stat", "-x,", "-e", instructions, "-p", pids)} //nolint:gosec // G204: perf
	c.cmd.Stderr = &c.out
	if c.cmd.Start() != nil {
		return nil
	}
	time.Sleep(50 * time.Millisecond) // until it counts
	return c
}

// stop returns the instructions; 0 where they can't be counted.
func (c *counter) stop() float64 {
	if c == nil {
		return 0
	}
	_ = c.cmd.Process.Signal(syscall.SIGINT)
	_ = c.cmd.Wait() // perf reports what ended it
	return perfValue(c.out.Bytes())
}

func perfValue(out []byte) float64 {
	for line := range strings.Lines(string(out)) {
		fields := strings.Split(line, ",")
		if len(fields) > 2 && strings.HasPrefix(fields[2], "instructions") {
			if n, err := strconv.ParseFloat(fields[0], 64); err == nil {
				return n
			}
		}
	}
	return 0
}
