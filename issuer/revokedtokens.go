package issuer

import (
	"strings"
	"sync"
	"time"
)

// revokedTokens are the tokens that were revoked one by one and have not
// expired.
type revokedTokens struct {
	mu      sync.RWMutex
	byID    map[string]revokedToken // by the jti claim
	clients map[string]int          // how many there are of each client
}

type revokedToken struct {
	key       string // of its record in the store
	clientID  string
	keepUntil int64 // seconds since 1970
}

func newRevokedTokens() *revokedTokens {
	return &revokedTokens{byID: make(map[string]revokedToken), clients: make(map[string]int)}
}

// add adds the token of a record's key.
func (r *revokedTokens) add(key string, until time.Time) {
	clientID, id, _ := strings.Cut(key[len(revokedTokenPrefix):], "/")
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.byID[id]; !known {
		r.clients[clientID]++
	}
	r.byID[id] = revokedToken{key, clientID, until.Unix()}
}

// has reports whether the token of that id is revoked.
func (r *revokedTokens) has(id string) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	_, revoked := r.byID[id]
	return revoked
}

// of reports whether a token of the client is revoked.
func (r *revokedTokens) of(clientID string) bool {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.clients[clientID] > 0
}

// forgetDue drops those that need not be kept any more, and returns the keys of
// their records.
func (r *revokedTokens) forgetDue(now time.Time) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var due []string
	for id, token := range r.byID {
		if now.Unix() <= token.keepUntil {
			continue
		}
		due = append(due, token.key)
		delete(r.byID, id)
		if r.clients[token.clientID]--; r.clients[token.clientID] == 0 {
			delete(r.clients, token.clientID)
		}
	}
	return due
}
