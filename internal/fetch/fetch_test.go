package fetch

import (
	"compress/gzip"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestOnlyPublicAddressesArePublic(t *testing.T) {
	for _, public := range []string{"8.8.8.8", "1.1.1.1", "172.15.0.1", "172.32.0.1", "2606:4700::1111", "2a00:1450::1"} {
		if !isPublic(netip.MustParseAddr(public).Unmap()) {
			t.Errorf("%s is refused", public)
		}
	}
	for _, private := range []string{
		"127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.100.100.200",
		"192.0.0.192", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
		"::1", "::", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1",
		"64:ff9b::7f00:1", "2002:7f00:1::", "2001:0:1::1", "2001:db8::1",
	} {
		if isPublic(netip.MustParseAddr(private).Unmap()) {
			t.Errorf("%s is taken for public", private)
		}
	}
}

func TestURLsAreCheckedBeforeAnythingIsSent(t *testing.T) {
	for url, want := range map[string][2]bool{ // public hosts alone, any host
		"https://client.example/jwks":                           {true, true},
		"https://client.example:8443/?a=b":                      {true, true},
		"https://10.0.0.1/jwks":                                 {true, true}, // its address is refused when it is dialled
		"http://client.example/jwks":                            {false, false},
		"http://localhost:8080/jwks":                            {false, true},
		"http://127.0.0.1/jwks":                                 {false, true},
		"http://10.0.0.1/jwks":                                  {false, false},
		"https://user@client.example/":                          {false, false},
		"https://client.example/#x":                             {false, false},
		"https:///jwks":                                         {false, false},
		"file:///etc/passwd":                                    {false, false},
		"client.example/jwks":                                   {false, false},
		"https://client.example/\"":                             {false, false},
		"https://client.example/{env.KEY}":                      {false, false},
		"https://client.example/" + strings.Repeat("a", maxURL): {false, false},
	} {
		for n, anyHost := range []bool{false, true} {
			if err := New(anyHost).CheckURL(url); (err == nil) != want[n] {
				t.Errorf("%.60s, any host %v: %v", url, anyHost, err)
			}
		}
	}
}

// The name may have stood for another address when it was looked at.
func TestAPrivateAddressIsNotEvenConnectedTo(t *testing.T) {
	var connections atomic.Int32
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ConnState = func(net.Conn, http.ConnState) { connections.Add(1) }
	server.StartTLS()
	defer server.Close()
	for _, url := range []string{server.URL, strings.Replace(server.URL, "127.0.0.1", "localhost", 1)} {
		if _, _, err := New(false).Get(t.Context(), url); err == nil || !strings.Contains(err.Error(), "not public") {
			t.Errorf("%s: %v", url, err)
		}
	}
	if n := connections.Load(); n != 0 {
		t.Errorf("%d connections were made", n)
	}
}

func TestWhatIsTooMuchIsNotTaken(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/good", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" || r.Header.Get("Cookie") != "" {
			t.Error("the request says who sends it")
		}
		w.Header().Set("Cache-Control", "public, MAX-AGE=600")
		_, _ = w.Write([]byte("{}"))
	})
	mux.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, maxBody+1)) })
	mux.HandleFunc("/missing", http.NotFound)
	mux.HandleFunc("/elsewhere", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/good", http.StatusFound) })
	mux.HandleFunc("/headers", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 1<<20)) })
	mux.HandleFunc("/packed", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		packed := gzip.NewWriter(w)
		_, _ = packed.Write(make([]byte, 10<<20))
		_ = packed.Close()
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil { // a byte now and then
			_, _ = w.Write([]byte(" "))
			_ = http.NewResponseController(w).Flush()
			time.Sleep(100 * time.Millisecond)
		}
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	f := New(true)
	body, maxAge, err := f.Get(t.Context(), server.URL+"/good")
	if err != nil || string(body) != "{}" || maxAge != 10*time.Minute {
		t.Errorf("%q for %v, %v", body, maxAge, err)
	}
	for _, path := range []string{"/large", "/missing", "/elsewhere", "/headers", "/slow"} {
		begin := time.Now()
		if body, _, err := f.Get(t.Context(), server.URL+path); err == nil {
			t.Errorf("%s: %d bytes", path, len(body))
		}
		if _, _, err := f.Get(t.Context(), server.URL+path+"?key=QUERY"); path != "/slow" && (err == nil || strings.Contains(err.Error(), "QUERY")) {
			t.Errorf("%s: the error is %v", path, err)
		}
		if took := time.Since(begin); took > 2*timeout+time.Second {
			t.Errorf("%s took %v", path, took)
		}
	}
	if body, _, err := f.Get(t.Context(), server.URL+"/packed"); err == nil && len(body) > maxBody {
		t.Errorf("it was unpacked to %d bytes", len(body))
	}
}

func TestADocumentIsKeptForAsLongAsItSaysWithinBounds(t *testing.T) {
	for header, want := range map[string]time.Duration{
		"": DefaultMaxAge, "no-store": DefaultMaxAge, "max-age=soon": DefaultMaxAge, "max-age=99999999999": DefaultMaxAge,
		"max-age=0": minMaxAge, "max-age=-5": minMaxAge, "public,max-age=600": 10 * time.Minute, "max-age=31536000": maxMaxAge,
	} {
		if got := maxAge(header); got != want {
			t.Errorf("%q: %v, want %v", header, got, want)
		}
	}
}
