package issuer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/store"
	"github.com/clientcredentials/caddy-client-credentials/store/backup"
)

// formatKey is the record of the format that the others have. It is not in
// stores of the first one.
const formatKey = "format"

// savedKey is the name of the backup that was kept before a change of the format
// that has not come to its end.
const savedKey = "format_backup"

// The formats of the store so far:
//
//  1. credentials, keys, revocations;
//  2. an index of the credentials that have ended, by that time;
//  3. indexes by which the credentials of an account are found.
const currentFormat = 3

type formatRecord struct {
	Version int `json:"version"`
}

// saveOldFormat keeps a backup of a store that is about to be brought into the
// current format, so that the release before can still be gone back to.
func saveOldFormat(ctx context.Context, st store.Store, dir string) error {
	format, err := readFormat(ctx, st)
	if err != nil || format >= currentFormat {
		return err
	}
	if err := requireRecords(ctx, st); errors.Is(err, errEmptyStore) {
		return nil
	} else if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("keeping a backup of format %d: %w", format, err)
	}
	name := fmt.Sprintf("format-%d-%s.backup", format, time.Now().UTC().Format("20060102T150405.000Z"))
	file := filepath.Join(dir, name)
	r, w := io.Pipe()
	go func() { _ = w.CloseWithError(backup.Write(ctx, w, st)) }()
	_, err = SaveBackup(file, r)
	_ = r.Close() // ends the writer, whatever was read
	if err == nil {
		err = replaceSaved(ctx, st, dir, name)
	}
	if err != nil {
		return fmt.Errorf("keeping a backup of format %d: %w", format, err)
	}
	caddy.Log().Named("client_credentials").Info("kept a backup of the store as it was", zap.Int("format", format), zap.String("file", file))
	return nil
}

// replaceSaved removes the backup of an earlier try: where one start after the
// other fails, backups must not fill the disk.
func replaceSaved(ctx context.Context, st store.Store, dir, name string) error {
	earlier, err := st.Get(ctx, savedKey)
	if errors.Is(err, store.ErrNotFound) {
		err = nil
	}
	if err == nil {
		err = st.Commit(ctx, store.Batch{Puts: []store.Record{{Key: savedKey, Value: []byte(name)}}, Urgent: true})
	}
	if err != nil {
		return errors.Join(err, os.Remove(filepath.Join(dir, name)))
	}
	if len(earlier) > 0 {
		if err := os.Remove(filepath.Join(dir, filepath.Base(string(earlier)))); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// migrate brings the store into the current format. It refuses one that only a
// later version of this plugin knows.
func migrate(ctx context.Context, st store.Store) error {
	format, err := readFormat(ctx, st)
	switch {
	case err != nil:
		return err
	case format == currentFormat:
		return nil
	}
	if err := requireKnownFormat(format); err != nil {
		return err
	}
	logger := caddy.Log().Named("client_credentials")
	if errors.Is(requireRecords(ctx, st), errEmptyStore) {
		logger = zap.NewNop() // a new store is of no other format
	}
	logger.Info("bringing the store into another format: with a million credentials, this takes minutes", zap.Int("from", format), zap.Int("to", currentFormat))
	if err := indexAll(ctx, st); err != nil {
		return fmt.Errorf("bringing the store into format %d: %w", currentFormat, err)
	}
	value, err := json.Marshal(formatRecord{currentFormat})
	if err != nil {
		return err
	}
	batch := store.Batch{Puts: []store.Record{{Key: formatKey, Value: value}}, Deletes: []string{savedKey}}
	if err := st.Commit(ctx, batch); err != nil {
		return err
	}
	logger.Info("brought the store into another format", zap.Int("format", currentFormat))
	return nil
}

func requireKnownFormat(format int) error {
	if format > currentFormat {
		return fmt.Errorf("the store has format %d, and this version of the plugin knows formats up to %d: "+
			"use the version that has written it, or a later one", format, currentFormat)
	}
	return nil
}

func readFormat(ctx context.Context, st store.Store) (int, error) {
	value, err := st.Get(ctx, formatKey)
	if errors.Is(err, store.ErrNotFound) {
		return 1, nil
	}
	if err != nil {
		return 0, err
	}
	return parseFormat(value)
}

func parseFormat(value []byte) (int, error) {
	var record formatRecord
	if err := json.Unmarshal(value, &record); err != nil || record.Version < 1 {
		return 0, errors.New("the record of the store's format can't be read")
	}
	return record.Version, nil
}
