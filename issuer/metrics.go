package issuer

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
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
	goodSignatures  = signatureChecks.WithLabelValues("good")
	wrongSignatures = signatureChecks.WithLabelValues("wrong")
)

// registerMetrics shows them in the registry of a configuration, which is another
// one after each reload.
func registerMetrics(registry *prometheus.Registry) error {
	if registry == nil {
		return nil // there is none outside of a configuration
	}
	for _, collector := range []prometheus.Collector{changesTotal, signatureChecks} {
		var already prometheus.AlreadyRegisteredError
		if err := registry.Register(collector); err != nil && !errors.As(err, &already) {
			return err
		}
	}
	return nil
}
