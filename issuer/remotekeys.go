package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"

	"github.com/clientcredentials/caddy-client-credentials/internal/fetch"
	"github.com/clientcredentials/caddy-client-credentials/internal/lru"
	"github.com/clientcredentials/caddy-client-credentials/internal/strictjson"
)

// remoteKeys are the key sets that clients keep at URLs of their own (jwks_uri
// of RFC 7591).
type remoteKeys struct {
	fetcher *fetch.Fetcher // nil: none is fetched
	flights singleflight.Group
	sets    *lru.Cache[string, remoteSet] // by their URLs
}

// remoteSet is a key set as it was fetched last.
type remoteSet struct {
	keys    *KeySet // the last good one; nil where there was none
	fetched time.Time
	stale   time.Time // from when on it has to be fetched again
	tried   time.Time
}

const (
	// remoteCooldown is how long a URL is left alone after it was tried: neither
	// its failure nor made-up kids make it be fetched more often.
	remoteCooldown = 30 * time.Second
	// remoteRenewal is how long after a set became stale it counts without a look at
	// what it is now.
	remoteRenewal = time.Minute
	// remoteMaxAge is how long the last good set counts if none can be fetched.
	remoteMaxAge     = 24 * time.Hour
	rememberedRemote = 1000
)

func newRemoteKeys(fetcher *fetch.Fetcher) *remoteKeys {
	return &remoteKeys{fetcher: fetcher, sets: lru.New[string, remoteSet](rememberedRemote)}
}

// check returns an *InputError where the URL could not be fetched from.
func (r *remoteKeys) check(url string) error {
	if r.fetcher == nil {
		return &InputError{"jwksUri", "is not taken by this server: give the keys as jwks"}
	}
	if err := r.fetcher.CheckURL(url); err != nil {
		return &InputError{"jwksUri", err.Error()}
	}
	return nil
}

// get returns the key set at the URL. One that is known and has the kid is not waited
// for where it has only just become stale: it is renewed while it is used.
func (r *remoteKeys) get(ctx context.Context, url, kid string, now time.Time) (*KeySet, error) {
	if r.fetcher == nil {
		return nil, errors.New("key sets are not fetched: client_jwks_uri is off")
	}
	set, _ := r.sets.Get(url)
	usable := set.keys != nil && now.Before(set.fetched.Add(remoteMaxAge))
	wanted := usable && (kid == "" || set.keys.has(kid))
	cool := now.Sub(set.tried) >= remoteCooldown
	switch {
	case wanted && (now.Before(set.stale) || !cool):
		return set.keys, nil
	case wanted && now.Before(set.stale.Add(remoteRenewal)):
		r.flights.DoChan(url, func() (any, error) { return r.fetch(context.WithoutCancel(ctx), url, now) })
		return set.keys, nil
	case usable && !cool:
		return set.keys, nil // without that kid
	case !cool:
		return nil, errors.New("the client's key set could not be fetched just now")
	}
	fetched, err, _ := r.flights.Do(url, func() (any, error) { return r.fetch(context.WithoutCancel(ctx), url, now) })
	if err == nil {
		return fetched.(*KeySet), nil
	}
	if usable {
		return set.keys, nil
	}
	return nil, fmt.Errorf("fetching the client's key set: %w", err)
}

// fetch replaces the set, or notes that it was tried in vain.
func (r *remoteKeys) fetch(ctx context.Context, from string, now time.Time) (*KeySet, error) {
	set, _ := r.sets.Get(from)
	set.tried = now
	body, maxAge, err := r.fetcher.Get(ctx, from)
	var keys *KeySet
	if err == nil {
		keys, err = parseRemoteKeys(body)
	}
	if err == nil {
		set.keys, set.fetched, set.stale = keys, now, now.Add(maxAge)
	} else {
		// While the last good set counts, nobody else notices.
		caddy.Log().Named("client_credentials").Warn("fetching a client's key set", zap.String("host", host(from)), zap.Error(err))
	}
	r.sets.Put(from, set, 1)
	return keys, err
}

func host(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return u.Host
}

// parseRemoteKeys reads what a client publishes for everybody: keys that are of
// no use here are left out. None at all is an error, and no reason to forget
// those that there were.
func parseRemoteKeys(body []byte) (*KeySet, error) {
	members, err := strictjson.Object(body)
	if err != nil {
		return nil, errors.New("it is no JWK Set")
	}
	var raw []json.RawMessage
	if err := json.Unmarshal(members["keys"], &raw); err != nil {
		return nil, errors.New("it is no JWK Set")
	}
	set := new(KeySet)
	for _, text := range raw {
		key, err := parseClientKey(text)
		if err != nil || set.has(key.ID) {
			continue
		}
		if set.Keys = append(set.Keys, key); len(set.Keys) == maxClientKeys {
			break
		}
	}
	if len(set.Keys) == 0 {
		return nil, errors.New("it has no key that could be used")
	}
	return set, nil
}

func (s *KeySet) has(kid string) bool {
	return slices.ContainsFunc(s.Keys, func(key jwk) bool { return key.ID == kid })
}
