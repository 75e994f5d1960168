package issuer

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/store"
	"github.com/clientcredentials/caddy-client-credentials/store/backup"
)

// WriteBackup writes all that the store holds, as it is at one moment. It fails
// where the store closes meanwhile.
func (i *Issuer) WriteBackup(ctx context.Context, w io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-i.registry.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	if err := i.registry.flushUses(ctx); err != nil { // what takes nothing more can still be read
		caddy.Log().Named("client_credentials").Warn("the backup lacks when credentials were last used", zap.Error(err))
	}
	return backup.Write(ctx, w, i.store)
}

// WriteBackup does the same with a store that no server holds. It needs no
// master key.
func (a *App) WriteBackup(ctx context.Context, w io.Writer) error {
	return a.withStore(ctx, func(st store.Store) error {
		if err := requireRecords(ctx, st); err != nil {
			return err
		}
		return backup.Write(ctx, w, st)
	})
}

// BackupContents is what a backup holds.
type BackupContents struct {
	// Made is when it was made: what was acknowledged before that is in it.
	Made time.Time
	// The credentials, by what they are worth now. Those that are disabled count as
	// active.
	Active, Expired, Revoked int
	SigningKeys              int
	// MasterKey is the id of the one that opens what is sealed in it.
	MasterKey string
}

// ReadBackup checks the whole of a backup, and returns what it holds.
func ReadBackup(r io.Reader) (*BackupContents, error) {
	var contents BackupContents
	var unreadable error // it counts only where the backup is what was written
	now := time.Now()
	made, err := backup.Read(r, func(record store.Record) error {
		if err := contents.add(record, now); err != nil && unreadable == nil {
			unreadable = err
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	contents.Made = made
	return &contents, unreadable
}

func (b *BackupContents) add(record store.Record, now time.Time) error {
	switch {
	case record.Key == formatKey:
		format, err := parseFormat(record.Value)
		if err == nil {
			err = requireKnownFormat(format)
		}
		return err
	case strings.HasPrefix(record.Key, keyPrefix):
		b.SigningKeys++
	case strings.HasPrefix(record.Key, pepperPrefix):
		var box sealed
		if err := json.Unmarshal(record.Value, &box); err != nil {
			return fmt.Errorf("%s can't be read: %w", record.Key, err)
		}
		b.MasterKey = box.MasterKey
	case strings.HasPrefix(record.Key, credentialPrefix):
		c, err := decodeCredential(record.Value)
		switch {
		case err != nil:
			return err
		case !c.Revoked.IsZero():
			b.Revoked++
		case !c.Ended(now):
			b.Active++
		default:
			b.Expired++
		}
	}
	return nil
}

// RestoreOptions are what a restore may be told.
type RestoreOptions struct {
	// Lost is the configuration of the store that the backup takes the place of,
	// where it can still be read; or nil.
	Lost *App
	// WithoutMasterKey restores also where nothing opens what is sealed.
	WithoutMasterKey bool
}

// Restored is what was restored, and what the lost store, where it was given,
// says of it.
type Restored struct {
	*BackupContents
	// RevokedAgain are the credentials that were revoked after the backup.
	RevokedAgain []*Credential
	// Changed are those that were changed in another way. They are as they were.
	Changed []*Credential
	// Missing are those that the lost store does not know. They work, if they did
	// when the backup was made.
	Missing []*Credential
	// Gone are the client ids of those that were created after the backup.
	Gone []string
}

// Restore writes the contents of a backup into the store, which has to be empty, and
// open on no other node, and ends all tokens. A store that was restored only in part
// can't be opened; a new Restore begins anew.
func (a *App) Restore(ctx context.Context, file io.ReadSeeker, opts RestoreOptions) (*Restored, error) {
	contents, err := ReadBackup(file)
	if err != nil {
		return nil, err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	if !opts.WithoutMasterKey {
		if err := a.requireMasterKey(ctx, contents.MasterKey); err != nil {
			return nil, fmt.Errorf("%w; if it is lost, restore the rest with --without-master-key", err)
		}
	}
	var lost map[string]lostCredential
	if opts.Lost != nil {
		if lost, err = opts.Lost.readLost(ctx); err != nil {
			return nil, fmt.Errorf("reading the lost store: %w", err)
		}
	}
	var restored *Restored
	err = a.withStoreAlone(ctx, func(st store.Store) error {
		return backup.Fill(ctx, st, file, func() (err error) {
			if restored, err = beginAnew(ctx, st, lost); err != nil {
				return err
			}
			return requireStillAlone(ctx, st)
		})
	})
	if err != nil {
		return nil, err
	}
	restored.BackupContents = contents
	return restored, nil
}

// CopyTo makes the store of another configuration the same as this one's, and reads
// both again to see that it is. The other one has to be empty, or left by a CopyTo
// that was interrupted, which goes on where it was, and no other node may have it
// open. Tokens live on there: no server may use the first one again. It calls copied
// with the bytes of what it has dealt with.
func (a *App) CopyTo(ctx context.Context, other *App, copied func(bytes int)) (contents backup.Contents, err error) {
	if a.engine.Identity() == other.engine.Identity() {
		return contents, fmt.Errorf("both configurations have the same store, %s", a.engine.Identity())
	}
	err = a.withStore(ctx, func(from store.Store) error {
		if err := requireRecords(ctx, from); err != nil {
			return err
		}
		id, err := sealedBy(ctx, from)
		if err != nil {
			return err
		}
		if err := other.requireMasterKey(ctx, id); err != nil {
			return err
		}
		return other.withStoreAlone(ctx, func(to store.Store) (err error) {
			contents, err = backup.Copy(ctx, from, to, copied, func() error { return requireStillAlone(ctx, to) })
			return err
		})
	})
	return contents, err
}

// requireMasterKey returns an error where the configuration has another master
// key than the one of that id, if any is needed.
func (a *App) requireMasterKey(ctx context.Context, id string) error {
	if id == "" {
		return nil
	}
	const mend = "bring that key with 'caddy client-credentials import-key', or set master_key to it"
	_, present, err := a.ExportMasterKey(ctx)
	if err != nil {
		return fmt.Errorf("the records are sealed with the master key %s; %s: %w", id, mend, err)
	}
	if present != id {
		return fmt.Errorf("the records are sealed with the master key %s, and the configuration has %s: %s", id, present, mend)
	}
	return nil
}

var errEmptyStore = errors.New("the store is empty: is it the one that is meant?")

// requireRecords returns errEmptyStore where the store is empty: most likely, it
// is not the one that was meant, and was made just now.
func requireRecords(ctx context.Context, st store.Store) error {
	err := st.Scan(ctx, "", func(string, []byte) error { return errEnough })
	switch {
	case errors.Is(err, errEnough):
		return nil
	case err != nil:
		return err
	}
	return errEmptyStore
}

// lostCredential is what counts of a credential of the lost store.
type lostCredential struct {
	content [sha256.Size]byte
	revoked bool
}

// content tells apart what credentials say: not how often they were changed, and
// so not whether their tokens were ended, too.
func (c *Credential) content() [sha256.Size]byte {
	said := *c
	said.Epoch, said.Version = 0, 0
	text, _ := json.Marshal(&said) // it was read as JSON
	return sha256.Sum256(text)
}

func (a *App) readLost(ctx context.Context) (lost map[string]lostCredential, err error) {
	err = a.withStore(ctx, func(st store.Store) error {
		if err := errors.Join(requireRecords(ctx, st), backup.CheckFinished(ctx, st)); err != nil {
			return err
		}
		lost, err = lostCredentials(ctx, st)
		return err
	})
	return lost, err
}

func lostCredentials(ctx context.Context, st store.Store) (map[string]lostCredential, error) {
	lost := make(map[string]lostCredential)
	err := scanCredentials(ctx, st, func(c *Credential) {
		lost[c.ClientID] = lostCredential{c.content(), !c.Revoked.IsZero()}
	})
	return lost, err
}

// beginAnew ends all tokens in a store that was restored, drops the keys that have
// signed them, since one may have been revoked after the backup, and revokes the
// credentials that were revoked in the lost store.
func beginAnew(ctx context.Context, st store.Store, lost map[string]lostCredential) (*Restored, error) {
	restored, err := compare(ctx, st, lost)
	if err != nil {
		return nil, err
	}
	reg, err := openRegistry(ctx, st, nil)
	if err != nil {
		return nil, err
	}
	defer reg.close()
	iss := &Issuer{store: st, registry: reg} // it has no keys, and needs none for this
	if _, err := iss.endAllTokens(ctx); err != nil {
		return nil, err
	}
	if err := dropKeys(ctx, st); err != nil {
		return nil, err
	}
	for _, c := range restored.RevokedAgain {
		err := iss.Revoke(ctx, "", c.ClientID)
		if err != nil && !errors.Is(err, ErrDeclared) { // what the configuration says of it then, the server does at its start
			return nil, err
		}
	}
	return restored, nil
}

// dropKeys leaves of the signing keys only those that were revoked, so that they
// stay so.
func dropKeys(ctx context.Context, st store.Store) error {
	records, before, err := readKeyRecords(ctx, st)
	if err != nil {
		return err
	}
	maps.DeleteFunc(records, func(_ string, r keyRecord) bool { return r.Revoked.IsZero() })
	return records.commit(ctx, st, before)
}

// compare holds the credentials of a store against those of the lost one, where
// there is one.
func compare(ctx context.Context, st store.Store, lost map[string]lostCredential) (*Restored, error) {
	restored := new(Restored)
	if lost == nil {
		return restored, nil
	}
	err := scanCredentials(ctx, st, func(c *Credential) {
		last, known := lost[c.ClientID]
		delete(lost, c.ClientID)
		switch {
		case !c.Revoked.IsZero():
		case !known:
			restored.Missing = append(restored.Missing, c)
		case last.revoked:
			restored.RevokedAgain = append(restored.RevokedAgain, c)
		case last.content != c.content():
			restored.Changed = append(restored.Changed, c)
		}
	})
	for id := range lost {
		restored.Gone = append(restored.Gone, id)
	}
	slices.Sort(restored.Gone)
	return restored, err
}

func scanCredentials(ctx context.Context, st store.Store, fn func(*Credential)) error {
	return st.Scan(ctx, credentialPrefix, func(_ string, value []byte) error {
		c, err := decodeCredential(value)
		if err == nil {
			fn(c)
		}
		return err
	})
}
