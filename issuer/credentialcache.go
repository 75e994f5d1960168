package issuer

import (
	"encoding/binary"
	"encoding/json"
	"sync/atomic"

	"github.com/clientcredentials/caddy-client-credentials/internal/bytecache"
	"github.com/clientcredentials/caddy-client-credentials/store"
)

// credentialCache keeps credentials that were used lately: those used last as they
// are, and many more packed, as Go's collector need not look at.
type credentialCache struct {
	// decoded holds pairs: in each, the one that was decoded last comes first.
	decoded []atomic.Pointer[remembered]
	packed  *bytecache.Cache // each a head of storedHead bytes, and what packCredential returns
}

// remembered is a credential as it was after so many changes.
type remembered struct {
	*Credential
	changes uint64
}

// decodedCredentials bounds what the collector has to look at: some six objects for
// each.
const decodedCredentials = 1 << 11

func newCredentialCache() *credentialCache {
	return &credentialCache{
		decoded: make([]atomic.Pointer[remembered], decodedCredentials),
		packed:  bytecache.New(),
	}
}

// get returns a credential that was used last, if no change was applied since it
// was read.
func (c *credentialCache) get(group uint16, clientID string, changes uint64) (remembered, bool) {
	at := int(group) & (len(c.decoded) - 1)
	for _, place := range [...]int{at, at ^ 1} {
		if known := c.decoded[place].Load(); known != nil && known.ClientID == clientID && known.changes == changes {
			return *known, true
		}
	}
	return remembered{}, false
}

// put keeps a credential as one that was used last.
func (c *credentialCache) put(group uint16, known remembered) {
	at := int(group) & (len(c.decoded) - 1)
	c.decoded[at^1].Store(c.decoded[at].Swap(&known))
}

// unpack returns what the store had of a credential, if no change was applied since
// it was read.
func (c *credentialCache) unpack(clientID string, changes uint64) (*Credential, bool) {
	known, ok := c.find(clientID, changes)
	if !ok {
		return nil, false
	}
	return unpackCredential(known[storedHead:])
}

// stored returns the same with the store's own text, if this is how the credential
// would be written now: an earlier release may have written it otherwise.
func (c *credentialCache) stored(clientID string, changes uint64) (*Credential, []byte, bool) {
	known, ok := c.find(clientID, changes)
	if !ok {
		return nil, nil, false
	}
	credential, ok := unpackCredential(known[storedHead:])
	if !ok {
		return nil, nil, false
	}
	text, err := json.Marshal(credential)
	return credential, text, err == nil && newStoredHead(changes, text) == known[:storedHead]
}

func (c *credentialCache) find(clientID string, changes uint64) (string, bool) {
	known, uses, ok := c.packed.Get(clientID)
	if !ok || binary.LittleEndian.Uint64([]byte(known)) != changes {
		return "", false
	}
	if uses < bytecache.EnoughUses {
		c.packed.Used(clientID)
	}
	return known, true
}

// putPacked keeps a credential, and what tells the store's text of it from others.
func (c *credentialCache) putPacked(clientID string, changes uint64, credential *Credential, text []byte) {
	c.packed.Put(clientID, clientID, newStoredHead(changes, text)+packCredential(credential))
}

// storedHead is how many bytes come before a packed credential: after how many
// changes it was read, and a checksum of the store's text.
const storedHead = 8 + 4

func newStoredHead(changes uint64, text []byte) string {
	head := binary.LittleEndian.AppendUint64(make([]byte, 0, storedHead), changes)
	return string(binary.LittleEndian.AppendUint32(head, store.Checksum(nil, text)))
}
