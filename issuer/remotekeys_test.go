package issuer

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/internal/fetch"
)

// keyServer publishes a key set that a test changes.
type keyServer struct {
	*httptest.Server
	body    atomic.Value
	fetched atomic.Int32
	gate    sync.Mutex // held: answers wait
}

const publicKey = `"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"`

func newKeyServer(t *testing.T, body string) *keyServer {
	k := new(keyServer)
	k.body.Store(body)
	k.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		k.fetched.Add(1)
		k.gate.Lock()
		defer k.gate.Unlock()
		if text := k.body.Load().(string); text != "" {
			_, _ = w.Write([]byte(text))
			return
		}
		w.WriteHeader(http.StatusInternalServerError)
	}))
	t.Cleanup(k.Close)
	return k
}

func oneKey(kid string) string { return `{"keys":[{` + publicKey + `,"kid":"` + kid + `"}]}` }

func TestAKeySetIsFetchedAgainWhenItIsNeededAndNotMoreOften(t *testing.T) {
	k := newKeyServer(t, oneKey("a"))
	r := newRemoteKeys(fetch.New(true))
	now := time.Now()
	want := func(what, kid string, found bool, fetches int32) {
		t.Helper()
		keys, err := r.get(t.Context(), k.URL, kid, now)
		if err != nil || keys.has(kid) != found {
			t.Errorf("%s: found %v, %v", what, keys != nil && keys.has(kid), err)
		}
		if n := k.fetched.Load(); n != fetches {
			t.Errorf("%s: fetched %d times, want %d", what, n, fetches)
		}
	}
	want("the first time", "a", true, 1)
	want("again", "a", true, 1)
	for range 100 {
		want("a kid that somebody made up", "x", false, 1)
	}
	k.body.Store(oneKey("b"))
	want("a new key, too soon", "b", false, 1)
	now = now.Add(remoteCooldown)
	want("a new key", "b", true, 2)
	want("the old key, which was replaced", "a", false, 2)

	for _, broken := range []string{"", "<html>", `{"keys":[]}`, `{"keys":[{"kty":"oct","k":"AAAA","kid":"b"}]}`} {
		k.body.Store(broken)
		now = now.Add(remoteCooldown)
		want("another kid, while it is broken", "c", false, k.fetched.Load()+1)
		want("the known kid, while it is broken", "b", true, k.fetched.Load())
	}
	now = now.Add(remoteMaxAge)
	if _, err := r.get(t.Context(), k.URL, "b", now); err == nil {
		t.Error("a key set counts a day after it was last seen")
	}
	if _, err := r.get(t.Context(), k.URL, "b", now.Add(time.Second)); err == nil {
		t.Error("a failure is taken for a key set")
	}
}

func TestAKnownKeyIsNotWaitedFor(t *testing.T) {
	k := newKeyServer(t, oneKey("a"))
	r := newRemoteKeys(fetch.New(true))
	now := time.Now()
	if _, err := r.get(t.Context(), k.URL, "a", now); err != nil {
		t.Fatal(err)
	}
	k.gate.Lock()
	begin := time.Now()
	for range 10 {
		keys, err := r.get(t.Context(), k.URL, "a", now.Add(fetch.DefaultMaxAge))
		if err != nil || !keys.has("a") {
			t.Errorf("%v, %v", keys, err)
		}
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("it took %v", took)
	}
	k.gate.Unlock()
	for deadline := time.Now().Add(5 * time.Second); k.fetched.Load() < 2 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if n := k.fetched.Load(); n != 2 {
		t.Errorf("it was fetched %d times, want once more", n)
	}
}

// Its client may have withdrawn it since.
func TestAKeyThatIsLongStaleIsLookedFor(t *testing.T) {
	k := newKeyServer(t, oneKey("a"))
	r := newRemoteKeys(fetch.New(true))
	now := time.Now()
	if _, err := r.get(t.Context(), k.URL, "a", now); err != nil {
		t.Fatal(err)
	}
	k.body.Store(oneKey("b"))
	keys, err := r.get(t.Context(), k.URL, "a", now.Add(fetch.DefaultMaxAge+remoteRenewal))
	if err != nil || keys.has("a") {
		t.Errorf("%v, %v, want what there is now", keys, err)
	}
}

func TestManyWhoNeedAKeySetFetchItOnce(t *testing.T) {
	k := newKeyServer(t, oneKey("a"))
	k.gate.Lock()
	r := newRemoteKeys(fetch.New(true))
	now := time.Now()
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if keys, err := r.get(t.Context(), k.URL, "a", now); err != nil || !keys.has("a") {
				t.Errorf("%v, %v", keys, err)
			}
		})
	}
	time.Sleep(50 * time.Millisecond)
	k.gate.Unlock()
	all.Wait()
	if n := k.fetched.Load(); n != 1 {
		t.Errorf("it was fetched %d times", n)
	}
}

// Who publishes its keys for everybody has some that are of no use here.
func TestUselessKeysOfASetAreLeftOut(t *testing.T) {
	set, err := parseRemoteKeys([]byte(`{"keys":[
		{"kty":"oct","k":"AAAA","kid":"mac"}, {"kty":"EC","crv":"P-256","x":"AA","y":"AA","kid":"no point"}, 1,
		{` + publicKey + `,"kid":"enc","use":"enc"}, {` + publicKey + `,"kid":"good"}, {` + publicKey + `,"kid":"good"},
		{` + publicKey + `,"kid":"private","d":"AA"}]}`))
	if err != nil || len(set.Keys) != 1 || !set.has("good") {
		t.Errorf("%+v, %v", set, err)
	}
}
