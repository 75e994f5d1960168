package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	streamsName = "open streams"
	streamsWant = 10_000
	// spareFiles are left to a process for all but its streams.
	spareFiles = 500
	// streamsWhile is two rounds of the guard, which looks through the streams of
	// each client every 30 s.
	streamsWhile = time.Minute
)

// streamsResult is what it costs to hold streams open on which nothing comes.
type streamsResult struct {
	Streams int       `json:"streams"`
	Files   uint64    `json:"open_files_limit"`
	Seconds float64   `json:"seconds"`
	Held    []holding `json:"held"`
}

// holding is one way to hold them.
type holding struct {
	Name     string  `json:"name"`
	Streams  int     `json:"streams"`
	CPU      float64 `json:"cpu_ms"` // of the server, in all of the time
	Resident float64 `json:"resident_mib"`
}

// measureStreams takes the CPU time that a server spends while streams are open
// and nothing is sent on them.
func (b *bench) measureStreams(ctx context.Context, found *outcome) error {
	if !b.wants(streamsName) {
		return nil
	}
	// Go raises a program's own limit to the hard one when it starts: here, and
	// in the server.
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return err
	}
	if files.Max <= spareFiles {
		return fmt.Errorf("%s: no more than %d files may be open", streamsName, files.Max)
	}
	r := &streamsResult{Streams: streamsWant, Files: files.Max, Seconds: streamsWhile.Seconds()}
	spec := storeSpec{algorithm: "ES256", credentials: 10_000, tokens: 200_000, revoked: 1_000, revokedTokens: 1_000}
	if b.quick {
		r.Streams, r.Seconds = 100, b.seconds
		spec = storeSpec{algorithm: "ES256", credentials: 1_000, tokens: 10_000, revoked: 100, revokedTokens: 100}
	}
	r.Streams = int(min(uint64(r.Streams), files.Max-spareFiles)) //nolint:gosec // G115: at most 10,000
	found.Streams = r
	for _, h := range []struct {
		holding
		guard string
	}{
		{holding{Name: "no streams"}, "bearer_auth items:read"},
		{holding{Name: "with `keep_streams`", Streams: r.Streams}, "bearer_auth items:read {\n\t\tkeep_streams\n\t}"},
		{holding{Name: "cut when their tokens end", Streams: r.Streams}, "bearer_auth items:read"},
	} {
		c := b.caddy(streamsName+" "+fmt.Sprint(len(r.Held)), spec, map[string]string{"events": h.guard + "\n\tbench_events"})
		if err := c.hold(ctx, &h.holding, time.Duration(r.Seconds*float64(time.Second))); err != nil {
			return err
		}
		log.Printf("%d streams, %s: %.0f ms of CPU in %g s", h.Streams, h.Name, h.CPU, r.Seconds)
		r.Held = append(r.Held, h.holding)
	}
	return nil
}

// hold opens streams, each by a token of its own, and measures for a while.
func (c *caddy) hold(ctx context.Context, h *holding, while time.Duration) error {
	if err := c.ensure(ctx); err != nil {
		return err
	}
	defer c.stop()
	tokens, err := os.Open(c.file("tokens"))
	if err != nil {
		return err
	}
	defer tokens.Close()
	lines := bufio.NewScanner(tokens)
	streams := make([]*stream, h.Streams)
	for i := range streams {
		if !lines.Scan() {
			return fmt.Errorf("%s: there is no token for each stream: %w", c.name, errors.Join(lines.Err(), io.EOF))
		}
		if streams[i], err = openStream(ctx, c.sites["events"].address, lines.Text()); err != nil {
			return fmt.Errorf("%s: stream %d: %w", c.name, i, err)
		}
		defer streams[i].conn.Close()
	}
	if err := c.collect(ctx); err != nil {
		return err
	}
	before, err := c.cpu()
	if err != nil {
		return err
	}
	select {
	case <-time.After(while):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := c.cpu()
	if err != nil {
		return err
	}
	h.CPU, h.Resident = float64((after-before).Microseconds())/1000, float64(c.residentKiB())/1024
	for _, s := range streams {
		if err := s.stillOpen(); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	return nil
}

// collect has the server collect its garbage: what is left of the opening is
// not to fall into the time that counts.
func (c *caddy) collect(ctx context.Context) error {
	_, err := get(ctx, "http://"+c.vars+"/debug/pprof/heap?gc=1")
	return err
}

// stream is a connection with an answer that has begun.
type stream struct {
	conn   net.Conn
	reader *bufio.Reader
}

func openStream(ctx context.Context, address, token string) (*stream, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	s := &stream{conn, bufio.NewReaderSize(conn, 1024)}
	if err := s.begin(address, token); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return s, nil
}

// begin sends the request and reads up to the first event.
func (s *stream) begin(address, token string) error {
	if err := s.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(s.conn, "GET / HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n\r\n", address, token); err != nil {
		return err
	}
	res, err := http.ReadResponse(s.reader, nil) //nolint:bodyclose // closing it would read the stream to its end
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d instead of %d", res.StatusCode, http.StatusOK)
	}
	event := make([]byte, len("data: first\n\n"))
	_, err = io.ReadFull(res.Body, event)
	return err
}

func (s *stream) stillOpen() error {
	if err := s.conn.SetReadDeadline(time.Now().Add(time.Millisecond / 10)); err != nil {
		return err
	}
	if _, err := s.conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("a stream has ended, or has brought more than it should: %w", errors.Join(err, io.ErrUnexpectedEOF))
	}
	return nil
}

func (o *outcome) writeStreams(text *strings.Builder) {
	r := o.Streams
	if r == nil {
		return
	}
	fewer := ""
	if r.Files < streamsWant+spareFiles {
		fewer = fmt.Sprintf(", fewer than %s,", grouped(streamsWant))
	}
	fmt.Fprintf(text, "\n## %s\n\n%s event streams behind the guard%s where %s files may be open. The server's CPU in %g s in which nothing is sent on them, and its memory.\n\n"+
		"| | streams | CPU, ms | RSS, MiB |\n| --- | ---: | ---: | ---: |\n",
		title(streamsName), grouped(r.Streams), fewer, grouped(int(r.Files)), r.Seconds) //nolint:gosec // G115: it fits
	for _, h := range r.Held {
		fmt.Fprintf(text, "| %s | %s | **%s** | %s |\n", h.Name, grouped(h.Streams), short(h.CPU), short(h.Resident))
	}
}
