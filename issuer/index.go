package issuer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// The indexes by which an account's credentials are found. An entry has no value,
// and its key is <index>/<account>/<order>/<client id>, where only the order of
// byName and byScope may hold a slash. They are kept in the transactions that
// change the credentials; byUse in those that note uses.
const (
	listedPrefix = "listed/"      // by the time of creation, while not revoked; and so are those by name, scope, expiry and whether it is disabled
	byName       = "by_name/"     // by the name in lower case
	byScope      = "by_scope/"    // by a scope, a space, and the time of creation
	byExpiry     = "by_expiry/"   // by the time at which it expires
	byDisabled   = "by_disabled/" // by the time of creation
	byRevoked    = "by_revoked/"  // by the time at which it was revoked
	byUse        = "by_use/"      // by the time of the last use, or of creation

	endedPrefix = "ended/" // ended/<when it was revoked, or expires>/<client id>, of all accounts
)

// entries returns those of a credential in all indexes but byUse.
func (c *Credential) entries() (all []string) {
	if end := c.end(); !end.IsZero() {
		all = append(all, endedKey(end, c.ClientID))
	}
	if !c.Revoked.IsZero() {
		return append(all, c.entry(byRevoked, seconds(c.Revoked)))
	}
	created := fmt.Sprintf("%020d", c.Created.UnixNano())
	all = append(all, c.entry(listedPrefix, created))
	if c.Name != nil {
		all = append(all, c.entry(byName, strings.ToLower(*c.Name)))
	}
	for _, scope := range c.Scopes {
		all = append(all, c.entry(byScope, scope+" "+created))
	}
	if !c.Expires.IsZero() {
		all = append(all, c.entry(byExpiry, seconds(c.Expires)))
	}
	if c.Disabled {
		all = append(all, c.entry(byDisabled, created))
	}
	return all
}

func (c *Credential) entry(index, order string) string {
	return index + c.Account + "/" + order + "/" + c.ClientID
}

// entryByUse returns that in byUse.
func (c *Credential) entryByUse(r useRecord) string { return c.entry(byUse, seconds(c.lastActive(r))) }

// lastActive returns when the credential was last used, or created.
func (c *Credential) lastActive(r useRecord) time.Time {
	if used := time.UnixMilli(r.At); used.After(c.Created) {
		return used
	}
	return c.Created
}

// seconds writes a time so that texts sort as times do.
func seconds(t time.Time) string { return fmt.Sprintf("%020d", max(0, t.Unix())) }

// endedKey sorts credentials by the time of their end, to the second.
func endedKey(end time.Time, clientID string) string {
	return endedPrefix + seconds(end) + "/" + clientID
}

// reindex has the batch replace entries by others.
func reindex(batch *store.Batch, before, after []string) {
	batch.Deletes = append(batch.Deletes, without(before, after)...)
	for _, entry := range without(after, before) {
		batch.Puts = append(batch.Puts, store.Record{Key: entry})
	}
}

// clientOf returns the client id at the end of an entry.
func clientOf(entry string) string { return entry[strings.LastIndexByte(entry, '/')+1:] }

// orderOf returns what an entry is sorted by in its account.
func orderOf(entry string) string {
	_, order, _ := strings.Cut(entry[strings.IndexByte(entry, '/')+1:strings.LastIndexByte(entry, '/')], "/")
	return order
}

// indexAll makes the entries of all credentials, in small steps. What is left of the
// indexes that only this format has goes first, where they were not completed: a
// release before may have had the store since, and have changed and removed credentials
// without them.
func indexAll(ctx context.Context, st store.Store) error {
	if err := dropIndexes(ctx, st, byName, byScope, byExpiry, byDisabled, byRevoked, byUse); err != nil {
		return err
	}
	for from := credentialPrefix; from != ""; {
		var some []*Credential
		entries, at := 0, from
		from = ""
		err := st.ScanFrom(ctx, credentialPrefix, at, func(key string, value []byte) error {
			if entries >= sweepBatch {
				from = key
				return errEnough
			}
			c, err := decodeCredential(value)
			if err != nil {
				return err
			}
			some, entries = append(some, c), entries+len(c.entries())+1
			return nil
		})
		if err != nil && !errors.Is(err, errEnough) {
			return err
		}
		var batch store.Batch
		for _, c := range some {
			_, use, err := readUse(ctx, st, c.ClientID)
			if err != nil {
				return err
			}
			reindex(&batch, nil, append(c.entries(), c.entryByUse(use)))
		}
		if err := st.Commit(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

func dropIndexes(ctx context.Context, st store.Store, indexes ...string) error {
	for _, index := range indexes {
		for from := index; from != ""; {
			batch := store.Batch{Urgent: true} // it makes room
			err := st.ScanFrom(ctx, index, from, func(key string, _ []byte) error {
				batch.Deletes = append(batch.Deletes, key)
				if len(batch.Deletes) >= sweepBatch {
					return errEnough
				}
				return nil
			})
			if err != nil && !errors.Is(err, errEnough) {
				return err
			}
			from = ""
			if n := len(batch.Deletes); n > 0 {
				from = batch.Deletes[n-1]
				if err := st.Commit(ctx, batch); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
