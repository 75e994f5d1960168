// Package fetch gets small documents from URLs that somebody else chose, and
// must not become a way into the networks that this server can reach.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The bounds of one document.
const (
	maxURL  = 2048     // bytes
	maxBody = 64 << 10 // bytes, as sent: nothing is unpacked
	timeout = 5 * time.Second

	// DefaultMaxAge is how long a document may be kept that does not say so
	// itself; what it says counts between the other two.
	DefaultMaxAge = 5 * time.Minute
	minMaxAge     = time.Minute
	maxMaxAge     = 24 * time.Hour
)

// Fetcher gets documents by https, without redirects and without a proxy.
type Fetcher struct {
	anyHost bool
	client  *http.Client
}

// New returns a Fetcher that reaches hosts with public addresses alone, or, if
// anyHost is set, every host, and loopback ones by http too.
func New(anyHost bool) *Fetcher {
	f := &Fetcher{anyHost: anyHost}
	dialer := &net.Dialer{Timeout: timeout, Control: f.checkAddress}
	f.client = &http.Client{
		Timeout:       timeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return errors.New("redirects are not followed") },
		Transport: &http.Transport{
			DialContext:            dialer.DialContext,
			TLSHandshakeTimeout:    timeout,
			MaxResponseHeaderBytes: 16 << 10,
			DisableCompression:     true,
			DisableKeepAlives:      true,
			ForceAttemptHTTP2:      true,
		},
	}
	return f
}

// CheckURL returns an error where Get would not even try.
func (f *Fetcher) CheckURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.User != nil || strings.Contains(text, "#") || u.String() != text || len(text) > maxURL:
		return errors.New("is no absolute URL without user and fragment")
	case u.Scheme == "https", u.Scheme == "http" && f.anyHost && isLoopback(u.Hostname()):
		return nil
	}
	return errors.New("is no https URL")
}

// Get returns the document and how long it may be kept.
func (f *Fetcher) Get(ctx context.Context, text string) ([]byte, time.Duration, error) {
	if err := f.CheckURL(text); err != nil {
		return nil, 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, text, nil)
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := f.client.Do(req)
	if withURL, ok := errors.AsType[*url.Error](err); ok {
		err = withURL.Err // a query may hold what no log should have
	}
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, 0, fmt.Errorf("it is answered with %d", resp.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return nil, 0, err
	}
	if len(body) > maxBody {
		return nil, 0, fmt.Errorf("it is larger than %d bytes", maxBody)
	}
	return body, maxAge(resp.Header.Get("Cache-Control")), nil
}

func maxAge(cacheControl string) time.Duration {
	for directive := range strings.SplitSeq(cacheControl, ",") {
		value, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(directive)), "max-age=")
		if seconds, err := strconv.ParseInt(value, 10, 32); ok && err == nil {
			return min(max(time.Duration(seconds)*time.Second, minMaxAge), maxMaxAge)
		}
	}
	return DefaultMaxAge
}

// checkAddress sees the address that a name stands for at this moment, so that
// no name server can change its mind between check and use.
func (f *Fetcher) checkAddress(_, address string, _ syscall.RawConn) error {
	if f.anyHost {
		return nil
	}
	addrPort, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	if !isPublic(addrPort.Addr().Unmap()) {
		return errors.New("it is at an address that is not public")
	}
	return nil
}

// reserved are the networks that net/netip has no name for, and from which
// something else than the Internet may answer (RFC 6890 and its kin).
var reserved = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"),   // shared by providers, and some clouds' metadata
	netip.MustParsePrefix("192.0.0.0/24"),    // protocol assignments
	netip.MustParsePrefix("192.0.2.0/24"),    // documentation
	netip.MustParsePrefix("192.88.99.0/24"),  // 6to4 relays
	netip.MustParsePrefix("198.18.0.0/15"),   // benchmarks
	netip.MustParsePrefix("198.51.100.0/24"), // documentation
	netip.MustParsePrefix("203.0.113.0/24"),  // documentation
	netip.MustParsePrefix("240.0.0.0/4"),
	netip.MustParsePrefix("::/96"),        // IPv4, once
	netip.MustParsePrefix("64:ff9b::/96"), // IPv4 behind NAT64
	netip.MustParsePrefix("64:ff9b:1::/48"),
	netip.MustParsePrefix("100::/64"),
	netip.MustParsePrefix("2001::/23"), // protocol assignments, Teredo
	netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("2002::/16"), // IPv4 by 6to4
	netip.MustParsePrefix("fec0::/10"),
}

func isPublic(address netip.Addr) bool {
	if !address.IsGlobalUnicast() || address.IsPrivate() {
		return false
	}
	for _, network := range reserved {
		if network.Contains(address) {
			return false
		}
	}
	return true
}

func isLoopback(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.IsLoopback()
}
