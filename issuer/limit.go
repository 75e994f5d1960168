package issuer

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/clientcredentials/caddy-client-credentials/internal/lru"
)

// Limits bound what a credential can do; zero for no limit.
type Limits struct {
	// TokensPerHour is how many tokens it gets at once; they come again evenly, so
	// many an hour.
	TokensPerHour int `json:"tokens_per_hour,omitempty"`
	// RequestsPerSecond is how many requests guards let pass at once; they come
	// again evenly, so many a second.
	RequestsPerSecond int `json:"requests_per_second,omitempty"`
}

// LimitError says that a credential has used up a limit.
type LimitError struct {
	Limit  string // by which name RateLimit header fields tell it from others
	Quota  int
	Window time.Duration
	Wait   time.Duration // until there is something of it again
}

func (e *LimitError) Error() string { return "limit of " + e.Limit + " reached" }

const (
	maxQuota = 1_000_000
	// rememberedLimits is how many limits are remembered because they were used
	// last; some 300 bytes each. One that is forgotten begins anew.
	rememberedLimits = 10_000
)

func (l Limits) validate() error {
	for _, one := range l.each() {
		if one.value < 0 || one.value > maxQuota {
			return &InputError{one.name, fmt.Sprintf("takes a whole number, 1 to %d", maxQuota)}
		}
	}
	return nil
}

type namedLimit struct {
	name  string
	value int
}

func (l Limits) each() [2]namedLimit {
	return [...]namedLimit{{"tokensPerHour", l.TokensPerHour}, {"requestsPerSecond", l.RequestsPerSecond}}
}

// beyond returns the name of one that is within none of the others; empty, where
// there is none.
func (l Limits) beyond(others ...Limits) string {
	for n, one := range l.each() {
		within := slices.ContainsFunc(others, func(other Limits) bool {
			most := other.each()[n].value
			return most == 0 || one.value != 0 && one.value <= most
		})
		if !within {
			return one.name
		}
	}
	return ""
}

// inherit returns the limits, with those of another credential where there are
// none.
func (l Limits) inherit(from Limits) Limits {
	if l.TokensPerHour == 0 {
		l.TokensPerHour = from.TokensPerHour
	}
	if l.RequestsPerSecond == 0 {
		l.RequestsPerSecond = from.RequestsPerSecond
	}
	return l
}

// limiters have a token bucket for each limit that is used. All configurations
// share them, so that a reload gives nothing anew.
type limiters struct {
	mu      sync.Mutex
	buckets *lru.Cache[limitKey, *rate.Limiter]
}

type limitKey struct {
	clientID, limit string
	quota           int // another one begins anew
}

func newLimiters() *limiters {
	return &limiters{buckets: lru.New[limitKey, *rate.Limiter](rememberedLimits)}
}

// take takes one out of a bucket. It returns a *LimitError where there is none.
func (l *limiters) take(clientID, limit string, quota int, window time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	perSecond := float64(quota) / window.Seconds()
	key := limitKey{clientID, limit, quota}
	bucket, ok := l.buckets.Get(key)
	if !ok {
		bucket = rate.NewLimiter(rate.Limit(perSecond), quota)
		l.buckets.Put(key, bucket, 1)
	}
	now := time.Now()
	if bucket.AllowN(now, 1) {
		return nil
	}
	wait := time.Duration((1 - bucket.TokensAt(now)) / perSecond * float64(time.Second))
	return &LimitError{limit, quota, window, max(wait, 0)}
}

// limitToken counts a token that is about to be issued.
func (i *Issuer) limitToken(c *Credential) error {
	if c.TokensPerHour == 0 {
		return nil
	}
	return i.registry.limits.take(c.ClientID, "tokens", c.TokensPerHour, time.Hour)
}

// Count counts a request that is let pass because of the token. It returns a
// *LimitError where its credential has none left.
func (a *Access) Count() error {
	if a.requestsPerSecond == 0 {
		return nil
	}
	return a.issuer.registry.limits.take(a.Token.ClientID, "requests", int(a.requestsPerSecond), time.Second)
}
