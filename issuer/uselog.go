package issuer

import (
	"encoding/binary"
	"hash/maphash"
)

// useLog has when clients were last used, in milliseconds since 1970, by client and
// secret: one entry after the other. Go's collector finds nothing in it to follow,
// however many there are.
type useLog struct {
	entries []byte         // each its time, the lengths of its texts, the secret's hash, and the texts
	places  map[uint64]int // where that of a hash begins
}

// useKey is a client, and the secret that it has used: none where it used a key.
type useKey struct {
	clientID string
	hash     secretHash
	slow     string
}

var useSeed = maphash.MakeSeed()

func newUseLog() useLog { return useLog{places: make(map[uint64]int)} }

// len returns how many uses it has.
func (l *useLog) len() int { return len(l.places) }

// get returns when a key was last used; 0 where it was not.
func (l *useLog) get(key useKey) int64 {
	if place, ok := l.find(key); ok {
		return l.at(place)
	}
	return 0
}

// put notes a use. Of two keys with the same hash, it has the first.
func (l *useLog) put(key useKey, at int64) {
	hash := maphash.Comparable(useSeed, key)
	if place, taken := l.places[hash]; taken {
		if l.has(place, key) {
			binary.LittleEndian.PutUint64(l.entries[place:], uint64(max(l.at(place), at))) //nolint:gosec // G115: after 1970
		}
		return
	}
	l.places[hash] = len(l.entries)
	l.entries = binary.LittleEndian.AppendUint64(l.entries, uint64(at))                //nolint:gosec // G115: after 1970
	l.entries = binary.LittleEndian.AppendUint16(l.entries, uint16(len(key.clientID))) //nolint:gosec // G115: validClientID
	l.entries = binary.LittleEndian.AppendUint16(l.entries, uint16(len(key.slow)))     //nolint:gosec // G115: a PHC string
	l.entries = append(append(append(l.entries, key.hash[:]...), key.clientID...), key.slow...)
}

// find returns where the entry of a key begins.
func (l *useLog) find(key useKey) (place int, ok bool) {
	place, ok = l.places[maphash.Comparable(useSeed, key)]
	return place, ok && l.has(place, key)
}

// read returns the entry of a place, and where the next one is.
func (l *useLog) read(place int) (at int64, key useKey, next int) {
	hash, clientID, slow := l.parts(place)
	key = useKey{string(clientID), secretHash(hash), string(slow)}
	return l.at(place), key, place + useHead + len(hash) + len(clientID) + len(slow)
}

// has reports whether the entry of a place is that of the key. Each token asks, so
// it makes no texts.
func (l *useLog) has(place int, key useKey) bool {
	hash, clientID, slow := l.parts(place)
	return string(clientID) == key.clientID && secretHash(hash) == key.hash && string(slow) == key.slow
}

func (l *useLog) at(place int) int64 {
	return int64(binary.LittleEndian.Uint64(l.entries[place:])) //nolint:gosec // G115: it was one
}

func (l *useLog) parts(place int) (hash, clientID, slow []byte) {
	entry := l.entries[place:]
	hash, texts := entry[useHead:useHead+len(secretHash{})], entry[useHead+len(secretHash{}):]
	length := int(binary.LittleEndian.Uint16(entry[8:]))
	clientID, texts = texts[:length], texts[length:]
	return hash, clientID, texts[:binary.LittleEndian.Uint16(entry[10:])]
}

// useHead is how many bytes of an entry come before the hash: the time, and the
// lengths of client id and slow hash.
const useHead = 8 + 2 + 2
