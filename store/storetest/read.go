package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// odd has keys and values that are something else than text to one or the other
// database: ends of texts, patterns, quotes, bytes that are no UTF-8, letters that
// an alphabet sorts elsewhere.
func odd() map[string]string {
	all := map[string]string{
		"empty": "", "zero": "\x00", "binary": "\x00\xff\r\n\\x00'\"%", "cut": "a\x00b",
		"a\x00": "1", "a\x00\x00": "2", "a\xff": "3", "a\xff\xff": "4", "a\xff\xff\x01": "5", "\xff": "6", "\xff\xff": "7",
		"%": "8", "_": "9", "a%b": "10", "a_b": "11", "axb": "12", `a\b`: "13", `a\\b`: "14", "a'b": "15", `a"b`: "16", "a?b": "17", "a$1": "18",
		"B": "19", "b": "20", "É": "21", "é": "22", "ß": "23", "a b": "24", "a-b": "25", "ab": "26", " a": "27", "a ": "28", "a": "29", "\r\n": "30", "null": "NULL",
		"k" + strings.Repeat("\xfe\x01", store.MaxKey/2-1) + "x": "a long key",
	}
	for n := range 256 {
		all["byte/"+string([]byte{byte(n)})] = string([]byte{byte(n)})
	}
	return all
}

func getReturnsWhatWasPut(t *testing.T, d *database) {
	st := d.open(t)
	expect(t, st, nil)
	want := odd()
	for key, value := range want {
		commit(t, st, store.Batch{Puts: records(key, value)})
	}
	expect(t, st, want)
	for _, key := range []string{"A", "a\x00\x00\x00", "c", "byte", "byte/", "byte/aa", "empty "} {
		if value, err := st.Get(t.Context(), key); !errors.Is(err, store.ErrNotFound) || value != nil {
			t.Errorf("Get(%q) = %q, %v, want ErrNotFound", key, value, err)
		}
	}
	if value, err := st.Get(t.Context(), "empty"); err != nil || value == nil {
		t.Errorf("Get of an empty value = %v, %v: it may not be nil, which is none in a condition", value, err)
	}
	commit(t, st, store.Batch{Puts: append(records("a", "new"), store.Record{Key: "of nil"}), Deletes: []string{"ab", "never there"}})
	want["a"], want["of nil"] = "new", ""
	delete(want, "ab")
	expect(t, st, want)
	expect(t, d.reopen(t, st), want)
}

func valuesAreCopies(t *testing.T, d *database) {
	st := d.open(t)
	put := records("a", "value", "b", "value")
	commit(t, st, store.Batch{Puts: put})
	spoil := func(value []byte) { // with what append would write over
		value = value[:cap(value)]
		for n := range value {
			value[n] = 'x'
		}
	}
	want := map[string]string{"a": "value", "b": "value"}
	spoil(put[0].Value)
	expect(t, st, want)
	got, err := st.Get(t.Context(), "a")
	if err != nil {
		t.Fatal(err)
	}
	spoil(got)
	var kept [][]byte
	keep := func(_ string, value []byte) error {
		kept = append(kept, value)
		return nil
	}
	if err := errors.Join(st.Scan(t.Context(), "", keep), st.ScanFrom(t.Context(), "", "", keep)); err != nil {
		t.Fatal(err)
	}
	commit(t, st, store.Batch{Puts: records("a", "other", "b", "other")})
	for _, value := range kept {
		if string(value) != "value" {
			t.Errorf("a value that Scan gave became %q", value)
		}
		spoil(value)
	}
	expect(t, st, map[string]string{"a": "other", "b": "other"})
}

// scanned returns the keys of a scan, and fails if a value is not that of its key.
func scanned(t *testing.T, all map[string]string, scan func(fn func(key string, value []byte) error) error) (keys []string) {
	t.Helper()
	err := scan(func(key string, value []byte) error {
		keys = append(keys, key)
		if all[key] != string(value) {
			t.Errorf("the scan gave %.40q as %.40q, want %.40q", key, value, all[key])
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// among returns those keys that begin with prefix and do not sort before from.
func among(all map[string]string, prefix, from string) (keys []string) {
	for _, key := range slices.Sorted(maps.Keys(all)) {
		if strings.HasPrefix(key, prefix) && key >= from {
			keys = append(keys, key)
		}
	}
	return keys
}

func scanGivesAPrefix(t *testing.T, d *database) {
	st := d.open(t)
	all := withMany(t, st)
	for _, prefix := range []string{
		"", "a", "a\x00", "a\xff", "a\xff\xff", "\xff", "\xff\xff", "\xff\xff\xff", "%", "_", "a%", "a_", `a\`, "A", "É", "byte/", "byte/\xff",
		"many/", "many/1", "many/00000", "none", "a long prefix that no key has",
	} {
		got := scanned(t, all, func(fn func(string, []byte) error) error { return st.Scan(t.Context(), prefix, fn) })
		if want := among(all, prefix, ""); !slices.Equal(got, want) {
			t.Errorf("Scan(%q) gave %d records, %.200q, want %d, %.200q", prefix, len(got), got, len(want), want)
		}
	}
}

func scanFromLeavesOut(t *testing.T, d *database) {
	st := d.open(t)
	all := withMany(t, st)
	for _, of := range [][2]string{
		{"", ""},
		{"", "a"},
		{"", "a\x00"},
		{"", "aa"},
		{"", "\xff"},
		{"", "\xff\xff"},
		{"", "\xff\xff\x00"},
		{"a", ""},
		{"a", "B"},
		{"a", "a"},
		{"a", "a\x00"},
		{"a", "a\xff\xff"},
		{"a", "b"},
		{"b", "a"},
		{"byte/", "byte/\x80"},
		{"%", ""},
		{"_", "%"},
		{"many/", "many/02500"},
		{"many/", "many/024999"},
		{"many/", "many/99999"},
		{"many/1", "many/0"},
		{"none", "none"},
	} {
		got := scanned(t, all, func(fn func(string, []byte) error) error { return st.ScanFrom(t.Context(), of[0], of[1], fn) })
		if want := among(all, of[0], of[1]); !slices.Equal(got, want) {
			t.Errorf("ScanFrom(%q, %q) gave %d records, %.200q, want %d, %.200q", of[0], of[1], len(got), got, len(want), want)
		}
	}
}

// withMany fills a store with odd records, and more than an engine reads at once.
func withMany(t *testing.T, st store.Store) map[string]string {
	t.Helper()
	all := odd()
	for n := range store.MaxRecords - len(all) {
		all[fmt.Sprintf("many/%05d", n)] = fmt.Sprint(n)
	}
	commit(t, st, store.Batch{Puts: of(all)})
	return all
}

// of returns the records of a map, in no order.
func of(all map[string]string) (puts []store.Record) {
	for key, value := range all {
		puts = append(puts, records(key, value)...)
	}
	return puts
}

func scanEndsWithError(t *testing.T, d *database) {
	st := d.open(t)
	commit(t, st, store.Batch{Puts: records("a", "1", "b", "2", "c", "3")})
	enough := errors.New("enough")
	for last := 1; last <= 3; last++ {
		calls := 0
		err := st.Scan(t.Context(), "", func(string, []byte) error {
			if calls++; calls == last {
				return enough
			}
			return nil
		})
		if !errors.Is(err, enough) || calls != last {
			t.Errorf("Scan = %v after %d calls, want its function's error after %d", err, calls, last)
		}
	}
	expect(t, st, map[string]string{"a": "1", "b": "2", "c": "3"})
}

// A scan may be as slow as who reads a backup: it holds up no change, and sees none.
func scanSeesOneMoment(t *testing.T, d *database) {
	st := d.open(t)
	before := map[string]string{}
	for n := range store.MaxRecords { // more than an engine reads at once
		before[fmt.Sprintf("%05d", n)] = "old"
	}
	commit(t, st, store.Batch{Puts: of(before)})
	last := fmt.Sprintf("%05d", len(before)-1)
	changes := store.Batch{Puts: records("00001", "new", "00001a", "new", last, "new", last+"a", "new"), Deletes: []string{"00002", fmt.Sprintf("%05d", len(before)-2)}}
	changed := make(chan error, 1)
	got := scanned(t, before, func(fn func(string, []byte) error) error {
		return st.Scan(t.Context(), "", func(key string, value []byte) error {
			if key == "00000" {
				go func() { changed <- st.Commit(context.Background(), changes) }()
				select {
				case err := <-changed:
					if err != nil {
						return err
					}
				case <-time.After(patience):
					return errors.New("a Commit waits for a Scan")
				}
			}
			return fn(key, value)
		})
	})
	if want := among(before, "", ""); !slices.Equal(got, want) {
		t.Errorf("Scan gave %d records, want the %d that were there when it began", len(got), len(want))
	}
	for key, want := range map[string]string{"00001": "new", "00001a": "new", last: "new", last + "a": "new"} {
		if value, err := st.Get(t.Context(), key); err != nil || string(value) != want {
			t.Errorf("after that, Get(%q) = %q, %v, want %q", key, value, err, want)
		}
	}
}
