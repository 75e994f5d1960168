package main

import (
	"io"
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	caddy.RegisterModule(Events{})
	httpcaddyfile.RegisterHandlerDirective("bench_events", func(httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		return Events{}, nil
	})
	httpcaddyfile.RegisterDirectiveOrder("bench_events", httpcaddyfile.Before, "respond")
}

// Events answers with an event stream that has one event, and then none: behind
// a proxy, each stream would take a second file of the server.
type Events struct{}

// CaddyModule returns the Caddy module information.
func (Events) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.bench_events", New: func() caddy.Module { return new(Events) }}
}

func (Events) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	w.Header().Set("Content-Type", "text/event-stream")
	if _, err := io.WriteString(w, "data: first\n\n"); err != nil {
		return err
	}
	if err := http.NewResponseController(w).Flush(); err != nil {
		return err
	}
	<-r.Context().Done()
	return nil
}

// Interface guards
var _ caddyhttp.MiddlewareHandler = Events{}
