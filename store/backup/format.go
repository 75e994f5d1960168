// Package backup moves all records of a store at once: into a file that says
// whether it is whole, and from there, or from another store, into an empty one,
// of whichever engine. It knows nothing of what is in the records.
package backup

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// A backup is
//
//   - the header: a JSON object on a line of its own;
//   - each record: the length of its key, the key, the length of its value, the
//     value;
//   - the length 0, where a key's would be;
//   - the number of records, in 8 bytes;
//   - the SHA-256 of all that, in 32.
//
// Lengths are varints of encoding/binary, the number is big-endian.

const (
	formatName    = "client_credentials backup"
	formatVersion = 1

	bufferSize = 64 << 10
	// The bounds are beyond what a store takes, so that a length which is wrong
	// costs no more memory than that. They are in bytes.
	maxHeader = 4 << 10
	maxKey    = 64 << 10
	maxValue  = 16 << 20
)

// ErrDamaged says that a backup is not what was written, or not all of it.
var ErrDamaged = errors.New("the backup is damaged")

type header struct {
	Format  string    `json:"format"`
	Version int       `json:"version"`
	Made    time.Time `json:"made"`
}

// Write writes all records of the store as they are at one moment.
func Write(ctx context.Context, w io.Writer, st store.Store) error {
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(sum, w), bufferSize)
	// Whatever was acknowledged before this moment is in the backup.
	first, err := json.Marshal(header{formatName, formatVersion, time.Now().UTC().Truncate(time.Millisecond)})
	if err != nil {
		return err
	}
	if _, err := out.Write(append(first, '\n')); err != nil {
		return err
	}
	var records uint64
	err = st.Scan(ctx, "", func(key string, value []byte) error {
		if key == unfinishedKey {
			return ErrUnfinished
		}
		records++
		if err := writeText(out, key); err != nil {
			return err
		}
		return writeText(out, value)
	})
	if err != nil {
		return err
	}
	if _, err := out.Write(binary.BigEndian.AppendUint64([]byte{0}, records)); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	_, err = w.Write(sum.Sum(nil))
	return err
}

func writeText[T string | []byte](out *bufio.Writer, text T) error {
	if _, err := out.Write(binary.AppendUvarint(nil, uint64(len(text)))); err != nil {
		return err
	}
	_, err := out.WriteString(string(text))
	return err
}

// Read calls fn with each record of a backup, and returns when it was made. What
// fn is given may be believed only when Read has returned nil. It returns
// ErrDamaged where the backup is not whole, and ends with fn's first error.
func Read(r io.Reader, fn func(store.Record) error) (made time.Time, err error) {
	in := &reader{buffered: bufio.NewReaderSize(r, bufferSize), sum: sha256.New()}
	first, err := in.header()
	if err != nil {
		return time.Time{}, err
	}
	var records uint64
	for {
		key, err := in.text(maxKey)
		if err != nil {
			return time.Time{}, err
		}
		if len(key) == 0 {
			return first.Made, in.end(records)
		}
		value, err := in.text(maxValue)
		if err != nil {
			return time.Time{}, err
		}
		records++
		if err := fn(store.Record{Key: string(key), Value: value}); err != nil {
			return time.Time{}, err
		}
	}
}

// reader reads a backup, and sums up what was read.
type reader struct {
	buffered *bufio.Reader
	sum      hash.Hash
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.buffered.Read(p)
	r.sum.Write(p[:n])
	return n, err
}

func (r *reader) ReadByte() (byte, error) {
	b, err := r.buffered.ReadByte()
	if err == nil {
		r.sum.Write([]byte{b})
	}
	return b, err
}

func (r *reader) header() (header, error) {
	var line []byte
	for len(line) < maxHeader {
		b, err := r.ReadByte()
		if errors.Is(err, io.EOF) || b == '\n' {
			break
		}
		if err != nil {
			return header{}, err
		}
		line = append(line, b)
	}
	var h header
	if err := json.Unmarshal(line, &h); err != nil || h.Format != formatName {
		return header{}, fmt.Errorf("%w, or is none: its first line is not that of a backup", ErrDamaged)
	}
	if h.Version != formatVersion {
		return header{}, fmt.Errorf("the backup has format version %d, and this program reads version %d: "+
			"use the release that made it, or a later one", h.Version, formatVersion)
	}
	return h, nil
}

// text reads a key or a value.
func (r *reader) text(bound uint64) ([]byte, error) {
	length, err := binary.ReadUvarint(r)
	if err != nil {
		return nil, incomplete(err)
	}
	if length > bound {
		return nil, fmt.Errorf("%w: it has a record that is longer than any can be", ErrDamaged)
	}
	text := make([]byte, length)
	_, err = io.ReadFull(r, text)
	return text, incomplete(err)
}

// end reads what follows the last record.
func (r *reader) end(records uint64) error {
	var number [8]byte
	if _, err := io.ReadFull(r, number[:]); err != nil {
		return incomplete(err)
	}
	want := r.sum.Sum(nil)
	got := make([]byte, sha256.Size)
	if _, err := io.ReadFull(r, got); err != nil {
		return incomplete(err)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%w: its checksum does not fit", ErrDamaged)
	}
	if binary.BigEndian.Uint64(number[:]) != records {
		return fmt.Errorf("%w: it has another number of records than it says", ErrDamaged)
	}
	if _, err := r.buffered.ReadByte(); !errors.Is(err, io.EOF) {
		if err != nil {
			return err
		}
		return fmt.Errorf("%w: something follows its end", ErrDamaged)
	}
	return nil
}

func incomplete(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it ends in the middle", ErrDamaged)
	}
	return err
}
