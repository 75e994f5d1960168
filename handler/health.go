package handler

import "net/http"

const healthPath = "/health"

// health is what a load balancer asks for.
type health struct {
	Live  bool `json:"live"`  // the server answers
	Ready bool `json:"ready"` // it can tell now what a token is worth
}

// serveHealth answers 200 where the server is ready, and 503 where it is not. Why
// not is in the log: everybody may ask.
func (c *ClientCredentials) serveHealth(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		methodNotAllowed(w, "GET, HEAD")
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
