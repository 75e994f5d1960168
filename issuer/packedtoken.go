package issuer

import (
	"encoding/binary"
	"math"
	"time"
)

// packedToken is what the cache keeps of a token, beside its text, and what was
// known of its credential when it was last read: a head of numbers, and the texts.
type packedToken string

// The head: where each number is, little-endian.
const (
	packedChanges    = 0 // how many changes its credential had seen
	packedVersion    = 8 // of the credential
	packedEpoch      = 16
	packedIssuedAt   = 24 // this and the other times in Unix milliseconds, or 0
	packedExpires    = 32
	packedNotBefore  = 40
	packedEnds       = 48
	packedGroup      = 56
	packedFlags      = 58
	packedLimit      = 60 // requests a second, four bytes
	packedLengths    = 64 // of the texts, two bytes each
	packedTextsCount = 7
	packedHead       = packedLengths + 2*packedTextsCount
)

const (
	flagEnded    = 1 << iota // the credential, or the token by itself, was revoked
	flagReissued             // see Token.reissued
)

// pack returns all of this, or nothing where it is too long to be packed.
func (a *Access) pack() packedToken {
	t := &a.Token
	texts := [packedTextsCount]string{t.ID, t.ClientID, t.Scope, t.audience, t.issuer, t.keyID, a.Account}
	size := packedHead
	for _, text := range texts {
		if len(text) > math.MaxUint16 {
			return ""
		}
		size += len(text)
	}
	p := make([]byte, packedHead, size)
	for _, number := range [...]struct {
		at    int
		value uint64
	}{
		{packedChanges, a.changes},
		{packedVersion, a.version},
		{packedEpoch, t.epoch},
		{packedIssuedAt, milliseconds(t.IssuedAt)},
		{packedExpires, milliseconds(t.Expires)},
		{packedNotBefore, milliseconds(t.notBefore)},
		{packedEnds, milliseconds(a.ends)},
	} {
		binary.LittleEndian.PutUint64(p[number.at:], number.value)
	}
	binary.LittleEndian.PutUint16(p[packedGroup:], a.group)
	binary.LittleEndian.PutUint32(p[packedLimit:], a.requestsPerSecond)
	if a.ended {
		p[packedFlags] |= flagEnded
	}
	if t.reissued {
		p[packedFlags] |= flagReissued
	}
	for n, text := range texts {
		binary.LittleEndian.PutUint16(p[packedLengths+2*n:], uint16(len(text))) //nolint:gosec // G115: looked at above
		p = append(p, text...)
	}
	return packedToken(p)
}

// unpack is the reverse of pack.
func (p packedToken) unpack(a *Access) {
	a.changes = p.number(packedChanges)
	a.version = p.number(packedVersion)
	a.Token.epoch = p.number(packedEpoch)
	a.Token.IssuedAt = p.time(packedIssuedAt)
	a.Token.Expires = p.time(packedExpires)
	a.Token.notBefore = p.time(packedNotBefore)
	a.ends = p.time(packedEnds)
	a.group = uint16(p[packedGroup]) | uint16(p[packedGroup+1])<<8
	a.requestsPerSecond = uint32(p[packedLimit]) | uint32(p[packedLimit+1])<<8 | uint32(p[packedLimit+2])<<16 | uint32(p[packedLimit+3])<<24
	a.ended = p[packedFlags]&flagEnded != 0
	a.Token.reissued = p[packedFlags]&flagReissued != 0
	rest := string(p[packedHead:])
	for n, text := range [...]*string{&a.Token.ID, &a.Token.ClientID, &a.Token.Scope, &a.Token.audience, &a.Token.issuer, &a.Token.keyID, &a.Account} {
		length := p.length(n)
		*text, rest = rest[:length], rest[length:]
	}
}

func (p packedToken) number(at int) uint64 {
	s := p[at : at+8]
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

// milliseconds returns what stands for a time; 0 for the zero one.
func milliseconds(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.UnixMilli())
}

func (p packedToken) time(at int) time.Time {
	if n := p.number(at); n != 0 {
		return time.UnixMilli(int64(n)) //nolint:gosec // G115: it was one
	}
	return time.Time{}
}

// length returns that of one of the texts.
func (p packedToken) length(n int) int {
	at := packedLengths + 2*n
	return int(p[at]) | int(p[at+1])<<8
}
