package handler

import (
	"errors"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/clientcredentials/caddy-client-credentials/internal/lru"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// FailureLimit bounds how often clients may fail to authenticate before they
// are told to wait. Only failures count: the right secret passes all the same, so
// that nobody can lock a client out by knowing its id. One that is kept by a slow
// hash, and was not used since the start, does not, from an address that has failed
// too often.
type FailureLimit struct {
	// How many failures at once one address may have for one client, refilled
	// at one a second. An IPv6 address counts with its /64 network.
	// Default: `50`
	PerClient int `json:"per_client,omitempty"`

	// How many failures at once one address may have for all clients, refilled
	// at one a second. Default: `500`
	PerAddress int `json:"per_address,omitempty"`

	// Answers every failure alike, however many there are. Default: `false`
	Off bool `json:"off,omitempty"`
}

const (
	defaultFailuresPerClient  = 50
	defaultFailuresPerAddress = 500
	failureRefill             = rate.Limit(1) // a second

	// suspicion is how long no more is said of an address that was suspected.
	suspicion = 10 * time.Minute

	// rememberedFailures is how many clients, and how many addresses, are
	// remembered because they failed last; some 300 bytes each.
	rememberedFailures = 10_000
)

func (l *FailureLimit) provision() error {
	if l.PerClient < 0 || l.PerAddress < 0 {
		return errors.New("auth_failures takes numbers of failures: a positive one, or off for no limit")
	}
	if l.PerClient == 0 {
		l.PerClient = defaultFailuresPerClient
	}
	if l.PerAddress == 0 {
		l.PerAddress = defaultFailuresPerAddress
	}
	return nil
}

// failures counts what all configurations of this process have seen, so that a
// reload forgives nothing.
var failures = caddy.NewUsagePool()

const failuresKey = "failures"

// failureCounter has a token bucket for each address, and for each client that
// an address has tried.
type failureCounter struct {
	mu        sync.Mutex
	clients   buckets
	addresses buckets

	suspects *lru.Cache[netip.Prefix, time.Time] // until when no more is said of them
}

type buckets struct {
	*lru.Cache[failureKey, *rate.Limiter]
}

type failureKey struct {
	address  netip.Prefix
	clientID string // empty for the address itself
	burst    int    // another limit begins anew
}

func acquireFailures() (*failureCounter, error) {
	value, _, err := failures.LoadOrNew(failuresKey, func() (caddy.Destructor, error) {
		return &failureCounter{
			clients: newBuckets(), addresses: newBuckets(),
			suspects: lru.New[netip.Prefix, time.Time](rememberedFailures),
		}, nil
	})
	if err != nil {
		return nil, err
	}
	return value.(*failureCounter), nil
}

func newBuckets() buckets {
	return buckets{lru.New[failureKey, *rate.Limiter](rememberedFailures)}
}

// Destruct implements caddy.Destructor.
func (*failureCounter) Destruct() error { return nil }

// charge counts a failure, and reports whether there were too many. The address
// comes first: one that has none left must not fill the memory with clients.
func (f *failureCounter) charge(limit FailureLimit, address netip.Prefix, clientID string) (tooMany bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.addresses.take(failureKey{address, "", limit.PerAddress}) {
		return true
	}
	return clientID != "" && !f.clients.take(failureKey{address, clientID, limit.PerClient})
}

// isSuspect reports whether a failure of the client, from where this request comes,
// would be one too many.
func (c *ClientCredentials) isSuspect(r *http.Request, clientID string) bool {
	return !c.AuthFailures.Off && c.failures.spent(*c.AuthFailures, network(clientIP(r)), clientID)
}

func (f *failureCounter) spent(limit FailureLimit, address netip.Prefix, clientID string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.addresses.empty(failureKey{address, "", limit.PerAddress}) || f.clients.empty(failureKey{address, clientID, limit.PerClient})
}

func (b buckets) empty(key failureKey) bool {
	bucket, ok := b.Get(key)
	return ok && bucket.Tokens() < 1
}

// take takes one out of a bucket, and reports whether there was one.
func (b buckets) take(key failureKey) bool {
	bucket, ok := b.Get(key)
	if !ok {
		bucket = rate.NewLimiter(failureRefill, key.burst)
		b.Put(key, bucket, 1)
	}
	return bucket.Allow()
}

// suspect reports whether something shall be said of an address that fails too
// often: once in a while.
func (f *failureCounter) suspect(address netip.Prefix, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if until, known := f.suspects.Get(address); known && now.Before(until) {
		return false
	}
	f.suspects.Put(address, now.Add(suspicion), 1)
	return true
}

// limited counts a failed authentication. It answers, and returns true, where
// there were too many.
func (c *ClientCredentials) limited(w http.ResponseWriter, r *http.Request, refused *issuer.TokenError) bool {
	if refused.Code != "invalid_client" || c.AuthFailures.Off {
		return false
	}
	address := network(clientIP(r))
	if !c.failures.charge(*c.AuthFailures, address, refused.ClientID) {
		return false
	}
	authenticationsLimited.Inc()
	if c.failures.suspect(address, time.Now()) {
		c.suspectBruteForce(clientIP(r), refused.ClientID)
	}
	// At debug level: a flood must not become one of log entries.
	c.logger.Debug("failed authentication limited", zap.String("client_id", refused.ClientID), zap.Stringer("network", address))
	w.Header().Set("Retry-After", "1")
	writeTokenError(w, r, http.StatusTooManyRequests, "temporarily_unavailable", "too many failed authentications, try again later")
	return true
}

func (c *ClientCredentials) suspectBruteForce(ip, clientID string) {
	c.logger.Warn("brute force suspected: too many failed authentications", zap.String("client_id", clientID), zap.String("remote_ip", ip))
	if iss, err := c.app.Open(); err == nil {
		iss.SuspectBruteForce(ip, clientID)
	}
}

// network returns the network that an address stands for. The zero value stands
// for whatever has no IP address, such as the peer of a unix socket.
func network(ip string) netip.Prefix {
	address, err := netip.ParseAddr(ip)
	if err != nil {
		return netip.Prefix{}
	}
	address = address.Unmap()
	bits := 64
	if address.Is4() {
		bits = 32
	}
	prefix, err := address.WithZone("").Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return prefix
}
