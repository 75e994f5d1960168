package badger

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

func asItIs(store.Store) error { return nil }

func TestALossThatWasAcceptedInPartIsNotAccepted(t *testing.T) {
	files := left(t, 10)
	at := bytes.LastIndex(files["00001.mem"].content, []byte("key/7"))
	dir := files.flipped("00001.mem", at).put(t)
	failed := errors.New("failed")
	if _, err := provisioned(t, dir).AcceptLoss(t.Context(), func(store.Store) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("AcceptLoss = %v", err)
	}
	if _, err := provisioned(t, dir).Open(t.Context()); err == nil || !strings.Contains(err.Error(), "only in part") {
		t.Errorf("Open = %v", err)
	}
	if _, err := provisioned(t, dir).AcceptLoss(t.Context(), func(st store.Store) error {
		put(t, st, "finished", "yes")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	st := openIn(t, dir)
	if got, err := st.Get(t.Context(), "finished"); err != nil || string(got) != "yes" {
		t.Errorf("Get = %q, %v", got, err)
	}
}

func TestAcceptLossSaysWhatIsLostAndKeepsTheRest(t *testing.T) {
	files := left(t, 10)
	at := bytes.LastIndex(files["00001.mem"].content, []byte("key/7"))
	dir := files.flipped("00001.mem", at).put(t)
	lost, err := provisioned(t, dir).AcceptLoss(t.Context(), asItIs)
	if err != nil || len(lost) != 1 || !strings.Contains(lost[0], "the last 3 are lost") {
		t.Errorf("AcceptLoss says %q, %v", lost, err)
	}
	st := openIn(t, dir)
	if n := len(contents(t, st, "key/")); n != 7 {
		t.Errorf("%d records are left", n)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	if lost, err := provisioned(t, dir).AcceptLoss(t.Context(), asItIs); err != nil || len(lost) != 0 {
		t.Errorf("AcceptLoss of a sound store says %q, %v", lost, err)
	}
	expect(t, openIn(t, dir), contents(t, openIn(t, files.put(t)), "")[:7]...)
}

func TestAcceptLossLeavesAStoreAloneThatIsOpen(t *testing.T) {
	t.Parallel() // it waits out the patience
	dir := t.TempDir()
	st := openIn(t, dir)
	put(t, st, "a", "1")
	if _, err := provisioned(t, dir).AcceptLoss(t.Context(), asItIs); err == nil || !strings.Contains(err.Error(), "held by another process") {
		t.Errorf("AcceptLoss = %v", err)
	}
	put(t, st, "b", "2")
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	expect(t, openIn(t, dir), "a=1", "b=2")
}

// A manifest that ends early names fewer tables, and Badger would remove the
// others.
func TestTheTablesThatADamagedManifestDoesNotNameComeBack(t *testing.T) {
	whole, m := worn(t)
	manifest := whole["MANIFEST"].content
	first := 16 + int(binary.BigEndian.Uint32(manifest[8:12]))
	dir := whole.cut("MANIFEST", first).put(t)
	if _, err := provisioned(t, dir).Open(t.Context()); err == nil {
		t.Fatal("it was opened")
	}
	if _, err := provisioned(t, dir).AcceptLoss(t.Context(), asItIs); err != nil {
		t.Fatal(err)
	}
	got := contents(t, openIn(t, dir), "")
	if !slices.Equal(got, m.records) {
		t.Errorf("%d records came back, of %d", len(got), len(m.records))
	}
}

// acceptLoss checks that what is left is of what was written, and takes changes
// and a restart.
func (m model) acceptLoss(t *testing.T, name, dir string) {
	t.Helper()
	if _, err := provisioned(t, dir).AcceptLoss(t.Context(), asItIs); err != nil {
		t.Errorf("%s: AcceptLoss: %v", name, err)
		return
	}
	var left []string
	for range 2 {
		st, err := provisioned(t, dir).Open(t.Context())
		if err != nil {
			t.Errorf("%s: after AcceptLoss: %v", name, err)
			return
		}
		now := contents(t, st, "credential/")
		for _, record := range now {
			if !m.ever[record] {
				t.Errorf("%s: after AcceptLoss it holds %.100q, which was never written", name, record)
			}
		}
		if left != nil && !slices.Equal(now, left) {
			t.Errorf("%s: after AcceptLoss and a restart it holds other records", name)
		}
		left = now
		put(t, st, "z", "new")
		if err := st.Close(); err != nil {
			t.Errorf("%s: Close after AcceptLoss: %v", name, err)
		}
	}
}
