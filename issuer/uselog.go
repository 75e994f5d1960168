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
func (l *useLog) get(key useKey) (at int64) {
	if place, ok := l.find(key); ok {
		at, _, _ = l.read(place)
	}
	return at
}

// put notes a use. Of two keys with the same hash, it has the first.
func (l *useLog) put(key useKey, at int64) {
	place, ok := l.find(key)
	if ok {
		before, _, _ := l.read(place)
		binary.LittleEndian.PutUint64(l.entries[place:], uint64(max(before, at))) //nolint:gosec // G115: after 1970
		return
	}
	hash := maphash.Comparable(useSeed, key)
	if _, taken := l.places[hash]; taken {
		return
	}
	l.places[hash] = len(l.entries)
	l.entries = binary.LittleEndian.AppendUint64(l.entries, uint64(at))                //nolint:gosec // G115: after 1970
	l.entries = binary.LittleEndian.AppendUint16(l.entries, uint16(len(key.clientID))) //nolint:gosec // G115: validClientID
	l.entries = binary.LittleEndian.AppendUint16(l.entries, uint16(len(key.slow)))     //nolint:gosec // G115: a PHC string
	l.entries = append(append(append(l.entries, key.hash[:]...), key.clientID...), key.slow...)
}

// read returns the entry of a place, and where the next one is.
func (l *useLog) read(place int) (at int64, key useKey, next int) {
	entry := l.entries[place:]
	at = int64(binary.LittleEndian.Uint64(entry)) //nolint:gosec // G115: it was one
	clientID, slow := int(binary.LittleEndian.Uint16(entry[8:])), int(binary.LittleEndian.Uint16(entry[10:]))
	texts := entry[12+copy(key.hash[:], entry[12:]):]
	key.clientID, key.slow = string(texts[:clientID]), string(texts[clientID:clientID+slow])
	return at, key, place + 12 + len(key.hash) + clientID + slow
}

func (l *useLog) find(key useKey) (place int, ok bool) {
	place, ok = l.places[maphash.Comparable(useSeed, key)]
	if !ok {
		return 0, false
	}
	_, found, _ := l.read(place)
	return place, found == key
}
