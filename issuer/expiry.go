package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// expiryDays are how many days before a credential expires that is told; 0 is
// when it has.
var expiryDays = [...]int{30, 7, 1, 0}

// expiriesTold are by their days up to which entry of the index of ended
// credentials expiries were told. The store has them, so that a restart makes
// none be told again, and none be missed.
type expiriesTold map[int]string

const (
	expiriesToldKey = "expiries_told"
	// saveTold is how often they are written though nothing was told.
	saveTold = time.Hour
)

// dueExpiry is one that is to be told: an entry of the index.
type dueExpiry struct {
	days  int
	entry string
}

// tellExpiries tells which credentials expire soon, and which have. It is the
// herald's.
func (r *registry) tellExpiries(ctx context.Context, now time.Time) error {
	told := &r.herald.told
	if *told == nil {
		if err := r.readTold(ctx, told); err != nil {
			return err
		}
	}
	told.correct(now)
	due, err := r.dueExpiries(ctx, *told, now)
	if err != nil {
		return err
	}
	for _, d := range due {
		if goOn, err := r.tellExpiry(ctx, d); err != nil || !goOn {
			return errors.Join(err, r.saveTold(ctx, now))
		}
		(*told)[d.days] = d.entry
	}
	for _, days := range expiryDays {
		(*told)[days] = max((*told)[days], inDays(now, days))
	}
	if len(due) > 0 || now.Sub(r.herald.saved).Abs() >= saveTold {
		return r.saveTold(ctx, now)
	}
	return nil
}

// correct begins now for what was never told, and where the clock was ahead.
func (t expiriesTold) correct(now time.Time) {
	for _, days := range expiryDays {
		if t[days] == "" || t[days] > inDays(now.Add(clockSetBack), days) {
			t[days] = inDays(now, days)
		}
	}
}

// dueExpiries returns what is to be told. Of a credential that has come closer to
// its end by several steps, while no server ran, that is the last one.
func (r *registry) dueExpiries(ctx context.Context, told expiriesTold, now time.Time) (due []dueExpiry, err error) {
	for n, days := range expiryDays {
		after := told[days]
		if n+1 < len(expiryDays) {
			after = max(after, inDays(now, expiryDays[n+1]))
		}
		entries, err := r.endingBetween(ctx, after, inDays(now, days))
		if err != nil {
			return nil, err
		}
		for _, entry := range entries {
			due = append(due, dueExpiry{days, entry})
		}
	}
	return due, nil
}

// tellExpiry tells one expiry, and reports whether there is somebody to tell.
func (r *registry) tellExpiry(ctx context.Context, d dueExpiry) (goOn bool, err error) {
	c, err := r.ending(ctx, d.entry)
	if err != nil || c == nil {
		return true, err
	}
	data := map[string]any{"client_id": c.ClientID, "account": c.Account, "expires": c.Expires.Format(time.RFC3339)}
	if c.Name != nil {
		data["name"] = *c.Name
	}
	if d.days == 0 {
		return r.emit("credential_expired", data), nil
	}
	data["days"] = d.days
	return r.emit("credential_expiring", data), nil
}

func (r *registry) readTold(ctx context.Context, told *expiriesTold) error {
	value, err := r.store.Get(ctx, expiriesToldKey)
	if errors.Is(err, store.ErrNotFound) {
		*told = make(expiriesTold)
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(value, told); err != nil {
		return fmt.Errorf("%s can't be read: %w", expiriesToldKey, err)
	}
	return nil
}

func (r *registry) saveTold(ctx context.Context, now time.Time) error {
	value, err := json.Marshal(r.herald.told)
	if err != nil {
		return err
	}
	err = r.store.Commit(ctx, store.Batch{Puts: []store.Record{{Key: expiriesToldKey, Value: value}}})
	if err == nil || errors.Is(err, store.ErrFull) { // which the store itself tells
		r.herald.saved = now
		return nil
	}
	return err
}

// inDays returns where those are in the index of ended credentials that end then.
func inDays(now time.Time, days int) string {
	return endedKey(now.Add(time.Duration(days)*24*time.Hour), "")
}

// endingBetween returns the entries of the index of ended credentials between two
// others. It looks at no more of the index than that.
func (r *registry) endingBetween(ctx context.Context, after, end string) (entries []string, err error) {
	err = r.store.ScanFrom(ctx, endedPrefix, after, func(key string, _ []byte) error {
		switch {
		case key >= end:
			return errEnough
		case key > after:
			entries = append(entries, key)
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return entries, err
}
