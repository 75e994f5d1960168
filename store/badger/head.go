package badger

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// head is a small file beside the database that says which transaction was
// acknowledged last. To Badger a damaged log ends where the damage begins, and
// what came behind is gone without a word: the head tells.
//
// It holds the tally in two slots, which are written in turn: a crash while one
// is written leaves the other. Each has a sector of its own.
type head struct {
	file   *os.File
	failed uint64 // writes
}

const (
	headFile   = "HEAD"
	headSector = 4096 // bytes
	slotSize   = tallySize + 4
)

var errHeadDamaged = errors.New("both slots of the file " + headFile + " are damaged")

// readHead returns what the head of a directory says. It returns
// fs.ErrNotExist where there is none, and errHeadDamaged where it can't be read.
func readHead(dir string) (last tally, err error) {
	content, err := os.ReadFile(filepath.Join(dir, headFile))
	if err != nil {
		return last, err
	}
	found := false
	for slot := range 2 {
		at := slot * headSector
		if len(content) < at+slotSize {
			continue
		}
		text := content[at : at+slotSize]
		if binary.BigEndian.Uint32(text[tallySize:]) != headChecksum(text[:tallySize]) {
			continue
		}
		if t := decodeTally(text); !found || t.transactions > last.transactions {
			last, found = t, true
		}
	}
	if !found {
		return last, errHeadDamaged
	}
	return last, nil
}

// makeHead makes a head that says t, in place of the one that is there.
func makeHead(dir string, t tally) error {
	content := make([]byte, 2*headSector)
	copy(content, slot(t))
	copy(content[headSector:], slot(t))
	return replaceFile(filepath.Join(dir, headFile), content)
}

func openHead(dir string) (*head, error) {
	file, err := os.OpenFile(filepath.Join(dir, headFile), os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	return &head{file: file}, nil
}

// write durably says that the transaction of t was the last. Where that fails,
// the slot may hold nothing any more, and the next goes into the same.
func (h *head) write(t tally) error {
	_, err := h.file.WriteAt(slot(t), int64((t.transactions+h.failed)%2)*headSector)
	if err == nil {
		err = syncData(h.file)
	}
	if err != nil {
		h.failed++
		return fmt.Errorf("noting a transaction: %w", err)
	}
	return nil
}

func (h *head) close() error { return h.file.Close() }

// slot is a tally with a checksum.
func slot(t tally) []byte {
	text := t.encode()
	return binary.BigEndian.AppendUint32(text, headChecksum(text))
}

// headChecksum is not that of zeros for zeros.
func headChecksum(text []byte) uint32 { return store.Checksum([]byte(headFile), text) }
