package issuer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/caddyserver/caddy/v2"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// ExportMasterKey returns the master key of the configuration, in base64, and
// its id. It makes none.
func (a *App) ExportMasterKey(ctx context.Context) (text, id string, err error) {
	where := "master_key"
	if a.MasterKey != "" {
		text, err = caddy.NewReplacer().ReplaceOrErr(a.MasterKey, true, true)
	} else {
		where = fmt.Sprintf("the master key %s in Caddy's storage (%v)", masterKeyFile, a.storage)
		var stored []byte
		stored, err = a.storage.Load(ctx, masterKeyFile)
		text = string(stored)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "", "", fmt.Errorf("%s does not exist; the server makes one when it first starts: %w", where, err)
	}
	if err != nil {
		return "", "", fmt.Errorf("reading %s: %w", where, err)
	}
	key, err := parseMasterKey(text)
	if err != nil {
		return "", "", fmt.Errorf("%s %w", where, err)
	}
	return strings.TrimSpace(text), key.id, nil
}

// UnfinishedMasterKey returns the id of another master key that a replacement
// which was cut short has left in Caddy's storage: the store may be sealed with
// that one, until the server is started. It is empty where there is none.
func (a *App) UnfinishedMasterKey(ctx context.Context) (id string, err error) {
	if a.MasterKey != "" {
		return "", nil
	}
	next, found, err := loadMasterKey(ctx, a.storage, nextMasterKeyFile)
	if err != nil || !found {
		return "", err
	}
	present, _, err := loadMasterKey(ctx, a.storage, masterKeyFile)
	if err != nil || next.id == present.id {
		return "", err
	}
	return next.id, nil
}

// ImportMasterKey puts a master key, in base64, into Caddy's storage, and
// returns its id. It takes the place of another one only while the store holds
// nothing that this one has sealed; no server may hold the store then.
func (a *App) ImportMasterKey(ctx context.Context, text string) (id string, err error) {
	text = strings.TrimSpace(text)
	key, err := parseMasterKey(text)
	if err != nil {
		return "", fmt.Errorf("what was given %w", err)
	}
	if a.MasterKey != "" {
		return "", errors.New("the configuration has a master_key of its own: replace it there")
	}
	if err := a.storage.Lock(ctx, masterKeyFile); err != nil {
		return "", fmt.Errorf("locking the master key in Caddy's storage: %w", err)
	}
	defer func() { _ = a.storage.Unlock(context.WithoutCancel(ctx), masterKeyFile) }()

	before, beforeID, err := a.ExportMasterKey(ctx)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return "", err
	case beforeID == key.id:
		return key.id, nil
	default:
		if err := a.requireUnused(ctx, beforeID); err != nil {
			return "", err
		}
		// Backups may still need it.
		if err := storeMasterKey(ctx, a.storage, masterKeyFile+"."+beforeID, before); err != nil {
			return "", err
		}
	}
	return key.id, storeMasterKey(ctx, a.storage, masterKeyFile, text)
}

// requireUnused returns an error where the store is sealed with that master key.
func (a *App) requireUnused(ctx context.Context, id string) error {
	return a.withStore(ctx, func(st store.Store) error {
		with, err := sealedBy(ctx, st)
		if err == nil && with == id {
			err = fmt.Errorf("the store is sealed with the master key %s, which Caddy's storage has: "+
				"move the store away first", id)
		}
		return err
	})
}
