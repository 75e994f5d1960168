package issuer

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// Query says which credentials are looked for: those that fit all of it.
type Query struct {
	// Account is where to look; everywhere where it is empty.
	Account string
	// Name is how the name begins, in any letter case; or empty.
	Name string
	// Scope is one that the credential has; or empty.
	Scope string
	// UnusedSince finds those that were created before it, and not used since it.
	UnusedSince time.Time
	// ExpiresBefore finds those that expire, and do it before it.
	ExpiresBefore time.Time
	// Status is one of those of Credential.Status; where it is empty, they are
	// neither revoked nor expired.
	Status string
	// Limit is how many at most: DefaultLimit where it is zero.
	Limit int
	// Cursor is the Next of the page before; or empty.
	Cursor string
}

// Page is a part of what a Query finds. There can be fewer than its limit, and
// still a next one.
type Page struct {
	Credentials []Found
	Next        string // the cursor of the next page; empty where there is none
}

// Found is a credential, and when it was last used; zero for never.
type Found struct {
	*Credential
	LastUsed time.Time
}

const (
	// DefaultLimit is how many credentials a page has where nobody says.
	DefaultLimit = 100

	maxLimit = 1000
	// maxLooked bounds how many entries of an index one page looks at.
	maxLooked = 1000
	// lookStep is how many it looks at in one step, after the first.
	lookStep = 100
)

// The values of Credential.Status.
const (
	StatusActive   = "active"
	StatusDisabled = "disabled"
	StatusExpired  = "expired"
	StatusRevoked  = "revoked"
)

// Status says what the credential is worth at the given time.
func (c *Credential) Status(now time.Time) string {
	switch {
	case !c.Revoked.IsZero():
		return StatusRevoked
	case c.Ended(now):
		return StatusExpired
	case c.Disabled:
		return StatusDisabled
	}
	return StatusActive
}

// Find returns a page of the credentials that fit the query, in the order of the
// index that it goes by. It looks at no more than a bounded number of them, and
// returns an *InputError where the query is wrong.
func (i *Issuer) Find(ctx context.Context, q Query) (*Page, error) {
	if err := q.validate(); err != nil {
		return nil, err
	}
	now := time.Now()
	w := q.walk(now)
	from, err := w.start(q.Cursor)
	if err != nil {
		return nil, err
	}
	page := new(Page)
	step := q.Limit + 1 // one more says whether there is a next page
	for left := maxLooked + 1; from != "" && left > 0 && len(page.Credentials) < q.Limit; step = lookStep {
		var entries []string
		var looked int
		if entries, from, looked, err = w.some(ctx, i.store, from, min(step, left)); err != nil {
			return nil, fmt.Errorf("finding credentials: %w", err)
		}
		left -= looked
		for _, entry := range entries {
			if len(page.Credentials) == q.Limit {
				from = entry
				break
			}
			found, err := i.look(ctx, &q, entry, now)
			if err != nil {
				return nil, fmt.Errorf("finding credentials: %w", err)
			}
			if found.Credential != nil {
				page.Credentials = append(page.Credentials, found)
			}
		}
	}
	if from != "" {
		page.Next = base64.RawURLEncoding.EncodeToString([]byte(from))
	}
	return page, nil
}

func (q *Query) validate() error {
	if q.Limit == 0 {
		q.Limit = DefaultLimit
	}
	switch {
	case q.Account != "" && !validAccount(q.Account):
		return errAccount
	case q.Limit < 1 || q.Limit > maxLimit:
		return &InputError{"limit", fmt.Sprintf("takes 1 to %d", maxLimit)}
	case q.Scope != "" && !ValidScope(q.Scope):
		return &InputError{"scope", "takes one scope: visible ASCII without quotes and backslash"}
	case !slices.Contains([]string{"", StatusActive, StatusDisabled, StatusExpired, StatusRevoked}, q.Status):
		return &InputError{"status", "takes active, disabled, expired or revoked"}
	}
	if err := validateName(q.Name); err != nil {
		return err
	}
	return nil
}

// look returns the credential of an entry, if it fits the query.
func (i *Issuer) look(ctx context.Context, q *Query, entry string, now time.Time) (found Found, err error) {
	c, err := i.readEntry(ctx, entry)
	if err != nil || c == nil || !q.fits(c, now) {
		return found, err
	}
	use, err := i.LastUse(ctx, c)
	if err != nil {
		return found, err
	}
	if !q.UnusedSince.IsZero() && (!c.Created.Before(q.UnusedSince) || !use.At.Before(q.UnusedSince)) {
		return found, nil
	}
	return Found{c, use.At}, nil
}

// readEntry returns the credential of an entry of an index; nil where both were
// removed meanwhile.
func (i *Issuer) readEntry(ctx context.Context, entry string) (*Credential, error) {
	c, err := i.registry.read(ctx, clientOf(entry))
	if errors.Is(err, store.ErrNotFound) {
		if _, err := i.store.Get(ctx, entry); errors.Is(err, store.ErrNotFound) {
			return nil, nil
		}
	}
	return c, err
}

// fits reports whether a credential is what the query looks for, but for its last
// use.
func (q *Query) fits(c *Credential, now time.Time) bool {
	switch {
	case q.Account != "" && c.Account != q.Account: // since the entry was read
		return false
	case q.Status == "" && c.Ended(now), q.Status != "" && c.Status(now) != q.Status:
		return false
	case q.Name != "" && (c.Name == nil || !strings.HasPrefix(strings.ToLower(*c.Name), strings.ToLower(q.Name))):
		return false
	case q.Scope != "" && !slices.Contains(c.Scopes, q.Scope):
		return false
	}
	return q.ExpiresBefore.IsZero() || !c.Expires.IsZero() && c.Expires.Before(q.ExpiresBefore)
}

// walk is a way along an index: in one account, or in all.
type walk struct {
	index, account string
	// from and before bound what follows the account in an entry; before is empty
	// for no bound.
	from, before string
}

// walk chooses the index by which the fewest credentials are looked at, as far as
// that can be told.
func (q *Query) walk(now time.Time) walk {
	w := walk{index: listedPrefix, account: q.Account}
	switch {
	case q.Status == StatusRevoked:
		w.index = byRevoked
	case q.Status == StatusDisabled:
		w.index = byDisabled
	case q.Status == StatusExpired:
		w.index, w.before = byExpiry, afterSecond(now)
	case !q.ExpiresBefore.IsZero():
		w.index, w.from, w.before = byExpiry, seconds(now), afterSecond(q.ExpiresBefore)
	case q.Name != "":
		name := strings.ToLower(q.Name)
		w.index, w.from, w.before = byName, name, name+"\xFF" // which is in no UTF-8
	case !q.UnusedSince.IsZero():
		w.index, w.before = byUse, afterSecond(q.UnusedSince)
	case q.Scope != "":
		w.index, w.from, w.before = byScope, q.Scope+" ", q.Scope+"!" // the sign that follows a space
	}
	return w
}

// afterSecond sorts behind all entries of that second.
func afterSecond(t time.Time) string { return seconds(t.Truncate(time.Second).Add(time.Second)) }

// prefix is what all entries of the way begin with: no cursor leads out of it.
func (w *walk) prefix() string {
	if w.account == "" {
		return w.index
	}
	return w.index + w.account + "/"
}

func (w *walk) start(cursor string) (string, error) {
	prefix := w.prefix()
	switch {
	case cursor != "":
		from, err := base64.RawURLEncoding.DecodeString(cursor)
		if err != nil || !strings.HasPrefix(string(from), prefix) {
			return "", &InputError{"cursor", "is none that this list has given"}
		}
		return string(from), nil
	case w.account != "":
		return prefix + w.from, nil
	}
	return prefix, nil
}

// some returns the entries of a part of the way, where it goes on, if it does, and
// how many it has looked at: up to most.
func (w *walk) some(ctx context.Context, st store.Store, from string, most int) (entries []string, next string, looked int, err error) {
	for at := from; at != ""; {
		begin := at
		at = ""
		err = st.ScanFrom(ctx, w.prefix(), begin, func(key string, _ []byte) error {
			if looked == most {
				next = key
				return errEnough
			}
			looked++
			if at = w.skip(key); at != "" {
				return errEnough
			}
			entries = append(entries, key)
			return nil
		})
		if err != nil && !errors.Is(err, errEnough) {
			return nil, "", looked, err
		}
	}
	return entries, next, looked, nil
}

// skip returns where to go on from an entry that is out of bounds.
func (w *walk) skip(key string) string {
	account, rest, _ := strings.Cut(key[len(w.index):], "/")
	switch {
	case rest < w.from:
		return w.index + account + "/" + w.from
	case w.before != "" && rest >= w.before:
		return w.index + account + "0" // the sign that follows a slash: the next account
	}
	return ""
}
