package issuer

import (
	"context"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/caddyserver/certmagic"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/clientcredentials/caddy-client-credentials/store"
)

// masterKey seals what the store must not hold in the clear. The zero value
// stands for the one in Caddy's storage, which is read, or made, when the store
// is opened.
type masterKey struct {
	id   string
	aead cipher.AEAD
}

// sealed is a text that only the master key of the given id opens.
type sealed struct {
	MasterKey string `json:"master_key"`
	Nonce     []byte `json:"nonce"`
	Box       []byte `json:"box"`
}

// masterKeyFile is where Caddy's storage holds the master key if the
// configuration gives none. It is not below "client_credentials": that is the
// folder of the store by default, and a copy of the store must not hold its key.
const masterKeyFile = "keys/client_credentials_master.key"

// nextMasterKeyFile is where its replacement is until the store is sealed with
// that.
const nextMasterKeyFile = "keys/client_credentials_master.key.next"

// parseMasterKey reads the 32 bytes in base64 that the operator gave. Its
// errors repeat nothing of them.
func parseMasterKey(text string) (masterKey, error) {
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	if err != nil || len(raw) != chacha20poly1305.KeySize {
		return masterKey{}, errors.New("is not 32 bytes in base64; make one with: openssl rand -base64 32")
	}
	aead, err := chacha20poly1305.NewX(raw)
	if err != nil {
		return masterKey{}, err
	}
	id := sha256.Sum256(append([]byte("client_credentials master key\x00"), raw...))
	return masterKey{id: hex.EncodeToString(id[:8]), aead: aead}, nil
}

// sealedBy returns the id of the master key that opens the store; empty where
// it holds nothing that is sealed.
func sealedBy(ctx context.Context, st store.Store) (id string, err error) {
	err = st.Scan(ctx, pepperPrefix, func(key string, value []byte) error {
		var box sealed
		if err := json.Unmarshal(value, &box); err != nil {
			return fmt.Errorf("%s can't be read: %w", key, err)
		}
		id = box.MasterKey
		return nil
	})
	return id, err
}

// storedMasterKey returns the master key of Caddy's storage, for a store that is
// sealed with the one of the given id. Where there is none it makes one, but
// never over a store that already holds what another key has sealed.
func storedMasterKey(ctx context.Context, storage certmagic.Storage, sealedWith string) (masterKey, error) {
	if err := storage.Lock(ctx, masterKeyFile); err != nil {
		return masterKey{}, fmt.Errorf("locking the master key in Caddy's storage: %w", err)
	}
	defer func() { _ = storage.Unlock(context.WithoutCancel(ctx), masterKeyFile) }()

	key, found, err := findMasterKey(ctx, storage, sealedWith)
	switch {
	case err != nil || found:
		return key, err // if it is another one, the error that follows names both
	case sealedWith == "":
		return makeMasterKey(ctx, storage, masterKeyFile)
	}
	return masterKey{}, fmt.Errorf("the master key %s is missing from Caddy's storage (%v), and what the store holds "+
		"was sealed with it: bring the file back, or set master_key to that key", masterKeyFile, storage)
}

// findMasterKey reads the master key of Caddy's storage, if it is there. A
// replacement that was cut short when the store was sealed with it takes its
// place first.
func findMasterKey(ctx context.Context, storage certmagic.Storage, sealedWith string) (key masterKey, found bool, err error) {
	key, found, err = loadMasterKey(ctx, storage, masterKeyFile)
	if err != nil || sealedWith == "" || sealedWith == key.id {
		return key, found, err
	}
	next, replaced, err := loadMasterKey(ctx, storage, nextMasterKeyFile)
	if err == nil && replaced && next.id == sealedWith {
		return next, true, promoteMasterKey(ctx, storage)
	}
	return key, found, err
}

// loadMasterKey reads a master key of Caddy's storage, if it is there.
func loadMasterKey(ctx context.Context, storage certmagic.Storage, file string) (key masterKey, found bool, err error) {
	text, err := storage.Load(ctx, file)
	if errors.Is(err, fs.ErrNotExist) {
		return masterKey{}, false, nil
	}
	if err != nil {
		return masterKey{}, false, fmt.Errorf("reading the master key from Caddy's storage: %w", err)
	}
	if key, err = parseMasterKey(string(text)); err != nil {
		return masterKey{}, false, fmt.Errorf("the master key %s in Caddy's storage %w", file, err)
	}
	return key, true, nil
}

func makeMasterKey(ctx context.Context, storage certmagic.Storage, file string) (masterKey, error) {
	text := base64.StdEncoding.EncodeToString(randomBytes(chacha20poly1305.KeySize))
	if err := storeMasterKey(ctx, storage, file, text); err != nil {
		return masterKey{}, err
	}
	return parseMasterKey(text)
}

func storeMasterKey(ctx context.Context, storage certmagic.Storage, file, text string) error {
	if err := storage.Store(ctx, file, []byte(text+"\n")); err != nil {
		return fmt.Errorf("keeping a new master key in Caddy's storage: %w", err)
	}
	// Files are synced by the storage, but not their names: the store must not be
	// sealed with a key that a power cut can take.
	if files, ok := storage.(*certmagic.FileStorage); ok {
		dir := filepath.Dir(files.Filename(file))
		if err := errors.Join(syncDirectory(dir), syncDirectory(filepath.Dir(dir))); err != nil {
			return fmt.Errorf("keeping a new master key in Caddy's storage: %w", err)
		}
	}
	// What was read back is what a restart will read.
	again, err := storage.Load(ctx, file)
	if err != nil || strings.TrimSpace(string(again)) != text {
		return errors.New("what Caddy's storage gives back is not the master key that it took")
	}
	return nil
}

// promoteMasterKey puts the replacement in the place of the master key.
func promoteMasterKey(ctx context.Context, storage certmagic.Storage) error {
	text, err := storage.Load(ctx, nextMasterKeyFile)
	if err != nil {
		return fmt.Errorf("reading the new master key from Caddy's storage: %w", err)
	}
	if err := storeMasterKey(ctx, storage, masterKeyFile, strings.TrimSpace(string(text))); err != nil {
		return err
	}
	if err := storage.Delete(ctx, nextMasterKeyFile); err != nil {
		return fmt.Errorf("removing %s from Caddy's storage: %w", nextMasterKeyFile, err)
	}
	return nil
}

// seal seals text for the record of the given key: it opens nowhere else.
func (m masterKey) seal(record string, text []byte) sealed {
	nonce := randomBytes(chacha20poly1305.NonceSizeX)
	return sealed{
		MasterKey: m.id,
		Nonce:     nonce,
		Box:       m.aead.Seal(nil, nonce, text, []byte(record)),
	}
}

func (m masterKey) open(record string, s sealed) ([]byte, error) {
	if s.MasterKey != m.id {
		return nil, fmt.Errorf("the store was sealed with another master key (%s) than the one given (%s): "+
			"set master_key to the one it was made with", s.MasterKey, m.id)
	}
	if len(s.Nonce) != chacha20poly1305.NonceSizeX {
		return nil, fmt.Errorf("%s is damaged", record)
	}
	text, err := m.aead.Open(nil, s.Nonce, s.Box, []byte(record))
	if err != nil {
		return nil, fmt.Errorf("%s is damaged, or was moved from another record", record)
	}
	return text, nil
}
