package handler

import (
	"errors"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
)

// The counters count for as long as the process runs: reloads do not set them
// back. Their labels have values from small sets, and never a client's id.
var (
	guardedRequests = counter("requests_total",
		"Requests that a guard has looked at: admitted, anonymous (without a token, where it is optional), refused, failed, or reported (would be refused, by a guard that only reports).", "result", "reason")
	requestsCut = counter("requests_cut_total",
		"Requests that were ended while they were answered, because their token had expired or was revoked.", "reason")
	tokenRequests = counter("tokens_total",
		"Requests for a token: issued, refused or failed, and in which dialect they were.", "dialect", "result", "reason")
	introspections = counter("introspections_total",
		"Answers of the introspection endpoint: active or inactive.", "result")

	authenticationsLimited = prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "client_credentials", Name: "authentications_limited_total",
		Help: "Failed client authentications that were answered 429, because there were too many.",
	})

	requestsAdmitted  = guardedRequests.WithLabelValues("admitted", "")
	requestsAnonymous = guardedRequests.WithLabelValues("anonymous", "")
	tokensIssued      = tokenRequests.WithLabelValues(dialectStandard, "issued", "")
	originalsIssued   = tokenRequests.WithLabelValues(dialectOriginal, "issued", "")

	introspectionsActive   = introspections.WithLabelValues("active")
	introspectionsInactive = introspections.WithLabelValues("inactive")
)

func counter(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "caddy", Subsystem: "client_credentials", Name: name, Help: help,
	}, labels)
}

func countRequest(result, reason string) { guardedRequests.WithLabelValues(result, reason).Inc() }

func countToken(dialect, result, reason string) {
	tokenRequests.WithLabelValues(dialect, result, reason).Inc()
}

// registerMetrics shows the counters in the registry of this configuration,
// which is another one after each reload.
func registerMetrics(ctx caddy.Context) error {
	for _, collector := range []prometheus.Collector{
		guardedRequests, requestsCut, tokenRequests, introspections, authenticationsLimited,
	} {
		var already prometheus.AlreadyRegisteredError // by another handler of this configuration
		if err := ctx.GetMetricsRegistry().Register(collector); err != nil && !errors.As(err, &already) {
			return err
		}
	}
	return nil
}
