package issuer

import (
	"encoding/binary"
	"sync/atomic"

	"github.com/clientcredentials/caddy-client-credentials/internal/bytecache"
)

// credentialCache keeps credentials that were used lately: those used last as they
// are, and many more as the texts of the store, which Go's collector need not look
// at, and which take some microseconds to decode.
type credentialCache struct {
	// decoded holds pairs: in each, the one that was decoded last comes first.
	decoded []atomic.Pointer[remembered]
	texts   *bytecache.Cache // after how many changes it was read, eight bytes, and the text
}

// remembered is a credential as it was after so many changes.
type remembered struct {
	*Credential
	changes uint64
}

// decodedCredentials bounds what the collector has to look at: some ten objects for
// each.
const decodedCredentials = 1 << 11

func newCredentialCache() *credentialCache {
	return &credentialCache{
		decoded: make([]atomic.Pointer[remembered], decodedCredentials),
		texts:   bytecache.New(),
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

// text returns what the store had of a credential, if no change was applied since
// it was read.
func (c *credentialCache) text(clientID string, changes uint64) ([]byte, bool) {
	text, uses, ok := c.texts.Get(clientID)
	if !ok || text[:8] != changesText(changes) {
		return nil, false
	}
	if uses < bytecache.EnoughUses {
		c.texts.Used(clientID)
	}
	return []byte(text[8:]), true
}

func (c *credentialCache) putText(clientID string, changes uint64, value []byte) {
	c.texts.Put(clientID, clientID, changesText(changes)+string(value))
}

func changesText(changes uint64) string {
	return string(binary.LittleEndian.AppendUint64(nil, changes))
}
