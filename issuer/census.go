package issuer

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

const (
	// censusInterval is how long a count of the credentials counts, at least.
	censusInterval = time.Minute
	// censusShare is how many times as long as it took: it must not take a part of
	// the processors worth speaking of, however many credentials there are.
	censusShare = 100
	// censusPage is how many keys are read from one view of the store: one that was
	// held for as long as it takes to read all would keep a database from clearing up.
	censusPage = 5000
)

// census is how many credentials there are, at some time.
type census struct {
	live     int
	expiring [len(censusDays)]int
}

// censusDays are the days within which credentials expire that are counted.
var censusDays = [...]int{7, 30}

// count counts the credentials by the indexes of those that were not revoked: all,
// and those that expire. It reads none of them, and remembers none. Those that are
// created or end meanwhile are counted or not.
func (r *registry) count(ctx context.Context, now time.Time) (c census, err error) {
	err = r.eachKey(ctx, listedPrefix, func(string) { c.live++ })
	if err != nil {
		return c, err
	}
	expired := seconds(now)
	var within [len(censusDays)]string
	for n, days := range censusDays {
		within[n] = seconds(now.AddDate(0, 0, days))
	}
	err = r.eachKey(ctx, byExpiry, func(key string) {
		expires := orderOf(key)
		if expires <= expired { // to the second
			c.live-- // it is listed until it is removed
			return
		}
		for n := range within {
			if expires < within[n] {
				c.expiring[n]++
			}
		}
	})
	return c, err
}

// eachKey calls fn with the keys that begin with prefix, a page at a time.
func (r *registry) eachKey(ctx context.Context, prefix string, fn func(key string)) error {
	for from := prefix; from != ""; {
		n, next := 0, ""
		err := r.store.ScanFrom(ctx, prefix, from, func(key string, _ []byte) error {
			if n == censusPage {
				next = key
				return errEnough
			}
			n++
			fn(key)
			return nil
		})
		if err != nil && !errors.Is(err, errEnough) {
			return err
		}
		from = next
	}
	return nil
}

// ending returns the credential that expires, or has expired, as an entry of the
// index of ended credentials says; nil where it was revoked, removed, or expires
// at another time.
func (r *registry) ending(ctx context.Context, entry string) (*Credential, error) {
	c, err := r.read(ctx, clientOf(entry))
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil || !c.Revoked.IsZero() || entry != endedKey(c.Expires, c.ClientID) {
		return nil, err
	}
	return c, nil
}

// gauges are what can be told of a configuration's credentials and keys when
// somebody asks. They do not ask the pool of the stores, which has who asks wait
// while a store opens.
type gauges struct{ app *App }

var (
	credentialsDesc = describe("credentials", "Credentials that are neither revoked nor expired.")
	expiringDesc    = describe("credentials_expiring", "Those of them that expire within so many days.", "days")
	keyStartDesc    = describe("signing_key_start_timestamp_seconds", "Since when the signing key signs, in Unix time.")
	lastUsedLagDesc = describe("last_used_flush_lag_seconds", "For how long the last use of some credential was not written to the store: up to a minute, unless more clients come than a hundredth of the processors can write, or the store takes nothing.")
)

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName("caddy", "client_credentials", name), help, labels, nil)
}

// Describe implements prometheus.Collector.
func (g gauges) Describe(descs chan<- *prometheus.Desc) {
	descs <- credentialsDesc
	descs <- expiringDesc
	descs <- keyStartDesc
	descs <- lastUsedLagDesc
}

// Collect implements prometheus.Collector. It leaves out what can't be told.
func (g gauges) Collect(metrics chan<- prometheus.Metric) {
	iss := g.app.issuer.Load()
	if iss == nil {
		return
	}
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	gauge(keyStartDesc, float64(iss.keys().signs.Unix()))
	gauge(lastUsedLagDesc, iss.registry.uses.lag(time.Now()).Seconds())
	c, err := iss.registry.counted.get(func() (census, error) {
		return iss.registry.count(context.Background(), time.Now())
	})
	if err != nil {
		return
	}
	gauge(credentialsDesc, float64(c.live))
	for n, days := range censusDays {
		gauge(expiringDesc, float64(c.expiring[n]), strconv.Itoa(days))
	}
}

// countedCredentials is the latest census.
type countedCredentials struct {
	mu     sync.Mutex
	census census
	until  time.Time // when it is made again
}

func (c *countedCredentials) get(count func() (census, error)) (census, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	begun := time.Now()
	if begun.Before(c.until) {
		return c.census, nil
	}
	counted, err := count()
	if err != nil {
		return census{}, err
	}
	c.census = counted
	c.until = begun.Add(max(censusInterval, censusShare*time.Since(begun)))
	return counted, nil
}
