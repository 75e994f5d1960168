package issuer

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// The counters count for as long as the process runs: reloads do not set them
// back. Their labels have values from small sets, and never a client's id.
var (
	changesTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "client_credentials", Name: "changes_total",
		Help: "Changes of credentials, tokens and keys, by what the audit log calls them.",
	}, []string{"action"})

	signatureChecks = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "client_credentials", Name: "signature_checks_total",
		Help: "Checks of a token's signature: good or wrong. A token that is remembered needs none.",
	}, []string{"result"})
	signatureCheckSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{
		Namespace: "caddy", Subsystem: "client_credentials", Name: "signature_check_duration_seconds",
		Help:    "How long a check of a token's signature took, with the wait for a processor.",
		Buckets: []float64{5e-5, 1e-4, 2.5e-4, 1e-3, 1e-2, 0.1},
	})
	goodSignatures  = signatureChecks.WithLabelValues("good")
	wrongSignatures = signatureChecks.WithLabelValues("wrong")

	tokenLookups = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "client_credentials", Name: "token_cache_lookups_total",
		Help: "Tokens that were looked for among those that are remembered: hit or miss.",
	}, []string{"result"})
	rememberedTokens = tokenLookups.WithLabelValues("hit")
	otherTokens      = tokenLookups.WithLabelValues("miss")
)

// registerMetrics shows them in the registry of the configuration, which is
// another one after each reload.
func (a *App) registerMetrics(registry *prometheus.Registry) error {
	if registry == nil {
		return nil // there is none outside of a configuration
	}
	for _, collector := range []prometheus.Collector{
		changesTotal, signatureChecks, signatureCheckSeconds, tokenLookups, store.Operations, gauges{a},
	} {
		var already prometheus.AlreadyRegisteredError
		if err := registry.Register(collector); err != nil && !errors.As(err, &already) {
			return err
		}
	}
	return nil
}
