package postgres

import (
	"fmt"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/store"
	"github.com/clientcredentials/caddy-client-credentials/store/backup"
	"github.com/clientcredentials/caddy-client-credentials/store/badger"
)

func TestAStoreIsCopiedFromBadgerToPostgreSQLAndBack(t *testing.T) {
	inBadger := func() store.Store {
		engine := &badger.Badger{Path: t.TempDir()}
		if err := engine.Provision(caddy.Context{}); err != nil {
			t.Fatal(err)
		}
		st, err := engine.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = st.Close() })
		return st
	}
	first := inBadger()
	for n := range 20 {
		var many []string
		for m := range 200 {
			many = append(many, fmt.Sprintf("many/%d/%d", n, m), strings.Repeat("\x00\xff", m))
		}
		put(t, first, many...)
	}
	put(t, first, "large", strings.Repeat("z", store.MaxValue))
	var all []backup.Contents
	middle, last := open(t, newURL(t)), inBadger()
	for _, pair := range [][2]store.Store{{first, middle}, {middle, last}} {
		contents, err := backup.Copy(t.Context(), pair[0], pair[1], func(int) {}, func() error { return nil })
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, contents)
	}
	if all[0] != all[1] || all[0].Records != 4001 {
		t.Errorf("copied %+v", all)
	}
}
