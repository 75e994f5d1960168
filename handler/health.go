package handler

import "net/http"

const (
	healthPath = "/health"
	livePath   = healthPath + "/live"
	readyPath  = healthPath + "/ready"
)

// health is what a load balancer asks for.
type health struct {
	Live  bool `json:"live"`  // the server answers
	Ready bool `json:"ready"` // it can tell now what a token is worth
}

// serveHealth answers 200 where the server is ready, and 503 where it is not. Why
// not is in the log: everybody may ask.
func (c *ClientCredentials) serveHealth(w http.ResponseWriter, r *http.Request) {
	if !asksForHealth(w, r) {
		return
	}
	iss, err := c.app.Open()
	if err == nil {
		err = iss.Ready()
	}
	if err != nil {
		w.Header().Set("Retry-After", retryAfter)
		writeJSON(w, r, http.StatusServiceUnavailable, health{Live: true})
		return
	}
	writeJSON(w, r, http.StatusOK, health{Live: true, Ready: true})
}

// serveLive answers 200, for who restarts a server that does not answer. It asks
// nothing of the store: a restart would not mend that.
func serveLive(w http.ResponseWriter, r *http.Request) {
	if asksForHealth(w, r) {
		writeJSON(w, r, http.StatusOK, map[string]bool{"live": true})
	}
}

// asksForHealth answers what does not ask for it, and reports whether it does.
func asksForHealth(w http.ResponseWriter, r *http.Request) bool {
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return true
	}
	methodNotAllowed(w, "GET, HEAD")
	return false
}
