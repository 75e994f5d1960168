package issuer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// Selection says which credentials are meant: all of an account, or all that one
// has created, itself or through those that it has created. One of them is set.
type Selection struct{ Account, CreatedBy string }

// RevokeAll revokes what is selected within an account; within all, where reach is
// empty. It leaves the credential alone that is named as keep: whoever asks must
// be able to ask again, where this fails half way. It returns how many it has
// revoked, also where it fails, and ErrNotFound where nothing is known of the
// creator that was named. It calls each with
// every credential that it has revoked, once that is durable.
//
// What is meant is what there is when it begins, and what was created after that
// by a credential that it revokes.
func (i *Issuer) RevokeAll(ctx context.Context, reach string, selection Selection, keep string, each func(context.Context, *Credential)) (int, error) {
	f, err := i.newFamily(reach, selection, keep)
	if err != nil {
		return 0, err
	}
	revoked, err := i.revokeFamily(ctx, f, each)
	switch {
	case err != nil:
		return revoked, fmt.Errorf("revoking credentials: %w", err)
	case selection.CreatedBy != "" && len(f.members) == 1:
		return 0, i.requireKnown(ctx, reach, selection.CreatedBy)
	case revoked == 0: // what was revoked before may not be known to all nodes yet
		return 0, i.registry.await(ctx)
	}
	return revoked, nil
}

func (i *Issuer) revokeFamily(ctx context.Context, f *family, each func(context.Context, *Credential)) (revoked int, err error) {
	for pass := 0; ; pass++ {
		if pass == 1 { // those that were created meanwhile: nobody must outrun this for ever
			i.registry.creating.Lock()
			defer i.registry.creating.Unlock()
		}
		ids, grown, err := f.grow(ctx, i)
		if err != nil || !grown {
			return revoked, err
		}
		n, err := i.revokeEach(ctx, ids, each)
		revoked += n
		if err != nil {
			return revoked, err
		}
	}
}

// family is what RevokeAll has found to be meant, until there is no more of it.
type family struct {
	Selection
	reach, keep string
	begun       time.Time
	// members are those that are meant, and the one that has created them. What
	// they have created until the given time is meant, too; where that is zero,
	// all: who is revoked creates no more.
	members map[string]time.Time
}

func (i *Issuer) newFamily(reach string, selection Selection, keep string) (*family, error) {
	f := &family{Selection: selection, reach: reach, keep: keep, begun: time.Now(), members: make(map[string]time.Time)}
	switch {
	case selection.CreatedBy == "" && !validAccount(selection.Account):
		return nil, errAccount
	case selection.CreatedBy != "" && !validClientID(selection.CreatedBy):
		return nil, &InputError{"createdBy", "is no client id"}
	case selection.CreatedBy != "":
		f.members[selection.CreatedBy] = f.begun
	}
	return f, nil
}

// grow takes in those that are meant and were not known to be. It returns which
// of them are to be revoked, and whether there were any at all.
func (f *family) grow(ctx context.Context, i *Issuer) (ids []string, grown bool, err error) {
	add := func(c *Credential) {
		if _, known := f.members[c.ClientID]; known || !f.means(c) {
			return
		}
		grown = true
		if c.ClientID == f.keep || f.reach != "" && c.Account != f.reach {
			f.members[c.ClientID] = f.begun
			return
		}
		f.members[c.ClientID] = time.Time{}
		if c.Revoked.IsZero() {
			ids = append(ids, c.ClientID)
		}
	}
	if f.Account != "" {
		err = i.eachListed(ctx, f.Account, add)
	} else {
		err = scanCredentials(ctx, i.store, add)
	}
	return ids, grown, err
}

func (f *family) means(c *Credential) bool {
	if f.Account != "" && !c.Created.After(f.begun) {
		return true
	}
	until, member := f.members[c.CreatedBy]
	return member && (until.IsZero() || !c.Created.After(until))
}

// revokeEach revokes credentials, many in each step, and returns how many of them
// were not revoked yet.
func (i *Issuer) revokeEach(ctx context.Context, ids []string, each func(context.Context, *Credential)) (revoked int, err error) {
	for len(ids) > 0 {
		if err := ctx.Err(); err != nil {
			return revoked, err
		}
		var done []*Credential
		taken, changed, err := i.changeSome(ctx, ids, func(c *Credential, batch *store.Batch, before []byte) error {
			if !c.Revoked.IsZero() || c.Declared {
				return nil
			}
			was := *c
			c.revoke(time.Now())
			done = append(done, c)
			_, err := putChange(batch, before, &was, c)
			return err
		})
		if errors.Is(err, store.ErrConflict) {
			continue // one of them was changed at the same time
		}
		if err != nil {
			return revoked, err
		}
		for _, c := range done {
			each(ctx, c)
		}
		ids, revoked = ids[taken:], revoked+changed
	}
	return revoked, nil
}

// requireKnown returns ErrNotFound where there is no such credential within an
// account.
func (i *Issuer) requireKnown(ctx context.Context, account, clientID string) error {
	c, err := i.registry.read(ctx, clientID)
	if errors.Is(err, store.ErrNotFound) || err == nil && account != "" && c.Account != account {
		return ErrNotFound
	}
	return err
}
