package storetest

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// largeBatches puts, and deletes, as much at once as package store says that every
// engine takes.
func largeBatches(t *testing.T, d *database) {
	st := d.open(t)
	want := map[string]string{}
	value := strings.Repeat("\x00\xff12", (store.MaxBytes/store.MaxRecords-10)/4)
	for n := range store.MaxRecords {
		want[fmt.Sprintf("many/%05d", n)] = value
	}
	commit(t, st, store.Batch{Puts: of(want)})
	large := strings.Repeat("\x00\xff1'", store.MaxValue/4+1)[:store.MaxValue]
	for n := range 3 {
		want[fmt.Sprint("large/", n)] = large
		commit(t, st, store.Batch{Puts: records(fmt.Sprint("large/", n), large)})
	}
	expect(t, st, want)
	commit(t, st, store.Batch{Conditions: []store.Condition{{Key: "large/1", Value: []byte(large)}}, Puts: records("large/1", "small")})
	want["large/1"] = "small"
	st = d.reopen(t, st)
	expect(t, st, want)
	var deletes []string
	for n := range store.MaxRecords {
		deletes = append(deletes, fmt.Sprintf("many/%05d", n))
	}
	commit(t, st, store.Batch{Deletes: deletes})
	expect(t, st, map[string]string{"large/0": large, "large/1": "small", "large/2": large})
}

// beyondTheBounds has an engine take what it need not take, or refuse it: but whole,
// and so that the database opens again.
func beyondTheBounds(t *testing.T, d *database) {
	st := d.open(t)
	want := map[string]string{"a": "1", "b": "2"}
	commit(t, st, store.Batch{Puts: of(want)})
	many := map[string]string{}
	for n := range 5 * store.MaxRecords {
		many[fmt.Sprintf("%06d", n)] = ""
	}
	for name, puts := range map[string]map[string]string{
		"no key":                     {"": "1"},
		"a key that is too long":     {strings.Repeat("k", 70_000): "1"},
		"a key of an engine's own":   {"\x00tally": "1"},
		"another":                    {"!badger!head": "1"},
		"a value that is too long":   {"large": strings.Repeat("v", store.MaxValue+1)},
		"values that are too long":   {"1": strings.Repeat("v", store.MaxValue), "2": strings.Repeat("v", store.MaxValue)},
		"more records than it takes": many,
	} {
		err := st.Commit(t.Context(), store.Batch{Puts: append(of(puts), records("a", "of "+name)...), Deletes: []string{"b"}})
		if err == nil {
			maps.Copy(want, puts)
			want["a"] = "of " + name
			delete(want, "b")
		}
		if errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrFull) {
			t.Errorf("%s: Commit = %v, which says something else", name, err)
		}
		expect(t, st, want)
	}
	expect(t, d.reopen(t, st), want)
}

func conditions(t *testing.T, d *database) {
	is := func(key, value string) store.Condition { return store.Condition{Key: key, Value: []byte(value)} }
	absent := func(key string) store.Condition { return store.Condition{Key: key} }
	before := map[string]string{"a": "1", "empty": "", "binary": "\x00\xff", "gone": "1"}
	st := d.open(t)
	for name, c := range map[string]struct {
		conditions []store.Condition
		held       bool
	}{
		"none":                      {nil, true},
		"absent":                    {[]store.Condition{absent("z")}, true},
		"absent, but there":         {[]store.Condition{absent("a")}, false},
		"absent, but there, empty":  {[]store.Condition{absent("empty")}, false},
		"absent, of another case":   {[]store.Condition{absent("A")}, true},
		"exact":                     {[]store.Condition{is("a", "1")}, true},
		"exact and empty":           {[]store.Condition{is("empty", "")}, true},
		"exact and binary":          {[]store.Condition{is("binary", "\x00\xff")}, true},
		"cut off":                   {[]store.Condition{is("binary", "\x00")}, false},
		"empty, but not there":      {[]store.Condition{is("z", "")}, false},
		"empty, but full":           {[]store.Condition{is("a", "")}, false},
		"other value":               {[]store.Condition{is("a", "2")}, false},
		"value with a tail":         {[]store.Condition{is("a", "1\x00")}, false},
		"value of no record":        {[]store.Condition{is("z", "1")}, false},
		"on what is deleted":        {[]store.Condition{is("gone", "1")}, true},
		"on what is put":            {[]store.Condition{absent("new")}, true},
		"all":                       {[]store.Condition{is("a", "1"), absent("z"), is("empty", ""), absent("new")}, true},
		"the same twice":            {[]store.Condition{is("a", "1"), is("a", "1")}, true},
		"both ways":                 {[]store.Condition{is("a", "1"), absent("a")}, false},
		"first fails":               {[]store.Condition{absent("a"), absent("z")}, false},
		"last fails":                {[]store.Condition{absent("z"), is("a", "1"), absent("empty")}, false},
		"what the batch would make": {[]store.Condition{is("a", "new")}, false},
	} {
		for _, urgent := range []bool{false, true} {
			commit(t, st, store.Batch{Puts: of(before), Deletes: []string{"new"}})
			err := st.Commit(t.Context(), store.Batch{Conditions: c.conditions, Puts: records("a", "new", "new", "new"), Deletes: []string{"gone"}, Urgent: urgent})
			want := before
			if c.held {
				want = map[string]string{"a": "new", "empty": "", "binary": "\x00\xff", "new": "new"}
			}
			if c.held != (err == nil) || err != nil && !errors.Is(err, store.ErrConflict) {
				t.Errorf("%s, urgent %v: Commit = %v, holds: %v", name, urgent, err, c.held)
			}
			expect(t, st, want)
			err = st.Commit(t.Context(), store.Batch{Conditions: c.conditions})
			if held := hold(c.conditions, want); held != (err == nil) || err != nil && !errors.Is(err, store.ErrConflict) {
				t.Errorf("%s, after that: Commit of no change = %v, holds: %v", name, err, held)
			}
		}
	}
	if err := st.Commit(t.Context(), store.Batch{}); err != nil {
		t.Errorf("Commit of an empty batch = %v", err)
	}
}

// hold reports whether the conditions hold where a store has these records.
func hold(conditions []store.Condition, has map[string]string) bool {
	for _, c := range conditions {
		if value, found := has[c.Key]; found != (c.Value != nil) || value != string(c.Value) {
			return false
		}
	}
	return true
}

func lastCounts(t *testing.T, d *database) {
	st := d.open(t)
	commit(t, st, store.Batch{Puts: records("twice", "1", "deleted", "1", "twice", "2", "new", "1"), Deletes: []string{"deleted", "new", "deleted"}})
	want := map[string]string{"twice": "2"}
	expect(t, st, want)
	expect(t, d.reopen(t, st), want)
}

func everyCommit(t *testing.T, d *database) {
	st := d.open(t)
	want := map[string]string{}
	for n := range 250 {
		key := fmt.Sprint(n)
		want[key] = key
		batch := store.Batch{Puts: records(key, key), Urgent: n%3 == 0}
		if n%2 == 1 {
			batch.Deletes = []string{fmt.Sprint(n - 1)}
			delete(want, batch.Deletes[0])
		}
		commit(t, st, batch)
	}
	expect(t, st, want)
	expect(t, d.reopen(t, st), want)
}
