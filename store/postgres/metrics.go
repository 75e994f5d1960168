package postgres

import (
	"math"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics tells of the databases that are open: one, but for the time in which a
// configuration with another database takes over.
var metrics = &collector{open: make(map[*database]bool)}

type collector struct {
	mu   sync.Mutex
	open map[*database]bool
}

var (
	staleMetric = prometheus.NewDesc("caddy_client_credentials_store_stale",
		"1 while this node has not heard from the database for longer than its lease, else 0.", nil, nil)
	lagMetric = prometheus.NewDesc("caddy_client_credentials_store_lag_seconds",
		"How long ago this node asked the database last what has changed, and learned all of it.", nil, nil)
	connectionsMetric = prometheus.NewDesc("caddy_client_credentials_store_connections",
		"Connections to the database by what they do, without the one that follows changes, and how many there may be (max).", []string{"state"}, nil)
)

func (c *collector) add(d *database) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open[d] = true
}

func (c *collector) remove(d *database) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, d)
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(descs chan<- *prometheus.Desc) {
	descs <- staleMetric
	descs <- lagMetric
	descs <- connectionsMetric
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(values chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.open) == 0 {
		return
	}
	var stale, lag, idle, busy, limit float64
	for d := range c.open {
		now, until := int64(clock()), d.feed.until.Load()
		if now > until {
			stale = 1
		}
		if until != math.MinInt64 {
			lag = max(lag, float64(now-until+d.feed.lease.Load())/1e9)
		}
		pool := d.pool.Stat()
		idle, busy, limit = idle+float64(pool.IdleConns()), busy+float64(pool.AcquiredConns()), limit+float64(pool.MaxConns())
	}
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		values <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	gauge(staleMetric, stale)
	gauge(lagMetric, lag)
	gauge(connectionsMetric, idle, "idle")
	gauge(connectionsMetric, busy, "busy")
	gauge(connectionsMetric, limit, "max")
}
