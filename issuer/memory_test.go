package issuer

import (
	"encoding/json"
	"fmt"
	"runtime"
	"testing"
	"time"
)

// Go's collector looks at each object in memory, and at each pointer in it: a
// million remembered tokens of as many clients must be few.
func TestWhatIsRememberedIsFewObjects(t *testing.T) {
	const clients = 20_000
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 1)
	before := heap()
	for n := range clients {
		name, clientID, secret := fmt.Sprint("client ", n), fmt.Sprintf("%032x", n), newSecret()
		draft := Draft{Name: &name, Account: DefaultAccount, Scopes: []string{"read", "write"}}
		record, err := json.Marshal(newCredential(draft, time.Now(), iss.keys().hash(clientID, secret), clientID))
		if err != nil {
			t.Fatal(err)
		}
		c, err := decodeCredential(record)
		if err != nil {
			t.Fatal(err)
		}
		shard := iss.registry.shard(clientID)
		st := iss.registry.intern(shard, c, shard.changes)
		if _, err := iss.Issue(t.Context(), tokenRequest(clientID, secret)); err != nil {
			t.Fatal(err)
		}
		runtime.KeepAlive(st)
	}
	after := heap()
	objects := float64(after.HeapObjects-before.HeapObjects) / clients
	bytes := float64(after.HeapAlloc-before.HeapAlloc) / clients
	t.Logf("a token and its client are %.1f objects of %.0f bytes", objects, bytes)
	if objects > 8 { // record and texts of each, the client's name, its state, and what the runtime needs to forget it
		t.Error("that is too many objects")
	}
	if n, _ := iss.registry.verified.size(); n != clients {
		t.Fatalf("%d tokens are remembered", n)
	}
}

func TestTheMemoryOfClientsThatNobodyUsesIsGivenBack(t *testing.T) {
	iss := newTestIssuer(t, openTestStore(t, t.TempDir()), time.Hour, 1)
	const clients = 100_000
	for n := range clients {
		if n%(clients/20) == 0 {
			runtime.GC()
		}
		c := &Credential{ClientID: fmt.Sprintf("%032x", n)}
		shard := iss.registry.shard(c.ClientID)
		if iss.registry.intern(shard, c, shard.changes) == nil {
			t.Fatal("no state")
		}
	}
	known := 0
	for n := range iss.registry.shards {
		known += len(iss.registry.shards[n].states)
	}
	if known > clients/4 {
		t.Errorf("%d of %d are known still", known, clients)
	}
}

func heap() (m runtime.MemStats) {
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m
}
