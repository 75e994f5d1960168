package handler

import (
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
)

// traceVar is among the variables of a request that Caddy's tracing handler traces.
const traceVar = "trace_id"

// traceClient tells the trace of a request, if there is one, whose it is. The
// access log asks the placeholders.
func traceClient(r *http.Request, clientID string) {
	if span := trace.SpanFromContext(r.Context()); span.IsRecording() {
		span.SetAttributes(attribute.String("client_credentials.client_id", clientID))
	}
}

// noteClient tells the access log and the trace who has authenticated itself at
// an endpoint.
func noteClient(r *http.Request, clientID string) {
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Set("http.auth.user.id", clientID)
	}
	traceClient(r, clientID)
}

// noteRefusal tells the access log and the trace why a request is refused, and who
// sends it, if that is known or claimed.
func noteRefusal(r *http.Request, reason, clientID string) {
	if extra, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok {
		extra.Set(zap.String("refusal", reason))
		if clientID != "" {
			extra.Set(zap.String("client_id", clientID))
		}
	}
	if span := trace.SpanFromContext(r.Context()); span.IsRecording() {
		span.SetAttributes(attribute.String("client_credentials.refusal", reason))
		if clientID != "" {
			traceClient(r, clientID)
		}
	}
}
