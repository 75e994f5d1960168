package badger

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	badgerdb "github.com/dgraph-io/badger/v4"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// guard keeps the store from running into the end of its volume. Badger writes
// through memory maps: where the volume has no block left for what it writes,
// the system ends the process with SIGBUS, and no Go code can prevent it any
// more. So nothing is begun that might not find its room.
//
// One goroutine at a time uses it: the committer's, while there is one.
type guard struct {
	dir string
	db  *badgerdb.DB

	free int64 // bytes, when it looked last
	err  error // of that look
	full bool  // for all that is not urgent

	log     uint64 // the number of the write-ahead log that is written to
	kept    bool   // the log has its blocks: to write to it needs no free one
	written int64  // to the log and its memtable, in bytes; at most

	noBallast time.Time // when a ballast was made that then was not there

	tables int64 // bytes of all tables
	level0 int   // the number of those in level 0
}

// What Badger takes at most, in bytes.
const (
	memTableSize = 8 << 20
	// A write-ahead log takes a memtable, and the transaction that overfills it.
	logSize = 10 << 20
	// A memtable that becomes a table gets an index and a filter.
	tableSize = 10 << 20
	// The manifest grows, and the other files have their first pages.
	smallFiles = 4 << 20
	// Compactions write tables anew before they remove them. However large the
	// store is, those that are under way at once take no more: with a million
	// credentials, created as fast as it goes, they took 60 MiB.
	maxCompaction = 256 << 20
)

// minInodes is how many more files the volume must take. Where Badger can't make
// a log, it has none, and can neither write nor read any more.
const minInodes = 32

// logSuffix is that of the write-ahead logs, whose names are numbers.
const logSuffix = ".mem"

// level0Tables is how many tables there are in level 0 when they are compacted.
const level0Tables = 5

const (
	// ballastFile is given up when an urgent change finds the volume full.
	ballastFile = "BALLAST"
	// ballastSize is what it takes to fill one more log.
	ballastSize = logSize + tableSize + smallFiles
	// ballastPause is how long it is not tried again where it fails, as under a
	// quota, or where the file system tells only later which blocks it takes.
	ballastPause = time.Minute
)

var storeFull = prometheus.NewGauge(prometheus.GaugeOpts{
	Namespace: "caddy", Subsystem: "client_credentials", Name: "store_full",
	Help: "1 while the store's volume lacks the room to create credentials, else 0.",
})

// roomToOpen returns an error where the volume lacks the room for what Badger
// writes when it opens: a table of each log that was left, and a new log. It
// gives up the ballast if that helps.
func roomToOpen(dir string) error {
	if !guarded {
		return nil
	}
	g := &guard{dir: dir}
	need := int64(logSize + smallFiles + len(numbered(dir, logSuffix))*tableSize)
	if g.makeRoom(need) {
		return nil
	}
	return g.refusal("to open the store takes", need)
}

// newGuard returns the guard of a database that was just opened.
func newGuard(dir string, db *badgerdb.DB) *guard {
	g := &guard{dir: dir, db: db, log: slices.Max(append(numbered(dir, logSuffix), 0))}
	storeFull.Set(0)
	g.keepLog()
	g.look()
	return g
}

// look sees how much room there is and renews the ballast. It says once when
// the store becomes full, and when it is so no more.
func (g *guard) look() {
	if !guarded {
		return
	}
	g.measure()
	if !g.hasBallast() && g.free >= g.need() && time.Since(g.noBallast) > ballastPause {
		g.makeBallast()
		if !g.hasBallast() {
			g.noBallast = time.Now()
		}
		g.measure()
	}
	full := g.err != nil || g.free < g.need()
	switch {
	case full && !g.full:
		storeFull.Set(1)
		logger().Error("the store is full: credentials can be revoked, but not created", zap.String("path", g.dir),
			zap.Int64("free_bytes", g.free), zap.Int64("needed_bytes", g.need()), zap.Error(g.err))
	case g.full && !full:
		storeFull.Set(0)
		logger().Info("the store has room again", zap.String("path", g.dir), zap.Int64("free_bytes", g.free))
	}
	g.full = full
}

// admit returns an error where there may be no room for an operation.
func (g *guard) admit(op *operation) error {
	if !g.full || op.Urgent && (g.fitsLog() || g.makeRoom(g.nextLog())) {
		return nil
	}
	return g.refusal("the next change takes", g.need())
}

// wrote notes that a transaction of at most so many bytes was written.
func (g *guard) wrote(bytes int64) {
	g.written += bytes
	if _, err := os.Stat(g.logPath(g.log + 1)); err != nil {
		return
	}
	// The one before becomes a table now.
	g.log++
	g.written = bytes
	g.keepLog()
	g.makeRoom(tableSize + smallFiles)
}

// roomToClose reports whether Badger can write what it writes when it closes:
// its memtable as a table.
func (g *guard) roomToClose() bool {
	return !guarded || g.written == 0 || g.makeRoom(tableSize+smallFiles)
}

// need returns what must be free for a change that is not urgent: what can
// follow from it, and a ballast where there is none.
func (g *guard) need() int64 {
	need := logSize + tableSize + smallFiles + min(g.tables, maxCompaction)
	if !g.hasBallast() {
		need += ballastSize
	}
	return need
}

// fitsLog reports whether the next transaction is sure to go into the log that
// is written to, and into blocks that it has.
func (g *guard) fitsLog() bool {
	const list = 1 << 10 // an empty memtable takes less
	return g.kept && g.written+list < memTableSize
}

// nextLog returns what a transaction takes that finds the log full: a new one,
// the table of the other, and a compaction if that is one too many.
func (g *guard) nextLog() int64 {
	need := int64(logSize + tableSize + smallFiles)
	if g.level0+2 >= level0Tables { // one may just have been added
		need += min(g.tables+tableSize, maxCompaction)
	}
	return need
}

// makeRoom reports whether so many bytes are free, if need be without the
// ballast.
func (g *guard) makeRoom(bytes int64) bool {
	if !guarded {
		return true
	}
	g.measure()
	if g.err == nil && g.free < bytes && g.free+taken(g.path(ballastFile)) >= bytes {
		if err := os.Remove(g.path(ballastFile)); err != nil {
			logger().Error("giving up the ballast of the store", zap.Error(err))
		}
		g.measure()
	}
	return g.err == nil && g.free >= bytes
}

func (g *guard) measure() { g.free, g.err = freeSpace(g.dir) }

// countTables sees what a compaction may have to do.
func (g *guard) countTables() {
	g.tables = 0
	for _, level := range g.db.Levels() {
		g.tables += level.Size
		if level.Level == 0 {
			g.level0 = level.NumTables
		}
	}
}

func (g *guard) refusal(what string, need int64) error {
	if g.err != nil {
		return fmt.Errorf("looking for room on the store's volume: %w", g.err)
	}
	inodes := ","
	if g.free == 0 {
		inodes = ", or no inodes,"
	}
	return fmt.Errorf("%w: the volume of %s has %d MiB free%s and %s %d MiB: make room on it",
		store.ErrFull, g.dir, g.free>>20, inodes, what, need>>20)
}

// keepLog gives the log all its blocks. Badger makes it without any.
func (g *guard) keepLog() {
	g.countTables()
	g.kept = false
	file, err := os.OpenFile(g.logPath(g.log), os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer file.Close()
	err = setAside(file, logSize)
	if err != nil && g.makeRoom(logSize) {
		err = setAside(file, logSize)
	}
	g.kept = err == nil
}

func (g *guard) hasBallast() bool { return taken(g.path(ballastFile)) >= ballastSize }

// makeBallast takes blocks for the ballast. Where the file system sets none
// aside, they are written with what it can't compress.
func (g *guard) makeBallast() {
	file, err := os.OpenFile(g.path(ballastFile), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err == nil {
		if err = setAside(file, ballastSize); errors.Is(err, errors.ErrUnsupported) {
			_, err = io.CopyN(file, rand.Reader, ballastSize)
		}
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		_ = os.Remove(g.path(ballastFile))
		logger().Warn("making the ballast of the store", zap.Error(err))
	}
}

func (g *guard) path(name string) string { return filepath.Join(g.dir, name) }

func (g *guard) logPath(number uint64) string {
	return g.path(fmt.Sprintf("%05d%s", number, logSuffix))
}

// numbered returns the numbers of the files in a directory that have one as
// their name, and the suffix.
func numbered(dir, suffix string) (numbers []uint64) {
	entries, _ := os.ReadDir(dir)
	for _, entry := range entries {
		name, fits := strings.CutSuffix(entry.Name(), suffix)
		if number, err := strconv.ParseUint(name, 10, 32); err == nil && fits {
			numbers = append(numbers, number)
		}
	}
	return numbers
}
