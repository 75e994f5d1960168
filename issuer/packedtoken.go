package issuer

import (
	"encoding/binary"
	"math"
)

// packedToken is what the cache keeps of a token, beside its text, and what was
// known of its credential when it was last read: a head of numbers, and the texts.
type packedToken []byte

// The head: where each number is, little-endian.
const (
	packedChanges    = 0 // how many changes its credential's group had seen
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
func (a *Access) pack(issuer string) packedToken {
	t := &a.Token
	texts := [packedTextsCount]string{issuer, t.keyID, t.audience, t.ID, t.ClientID, t.Scope, a.Account}
	size := packedHead
	for _, text := range texts {
		if len(text) > math.MaxUint16 {
			return nil
		}
		size += len(text)
	}
	p := make(packedToken, packedHead, size)
	p.setNumber(packedEpoch, t.epoch)
	p.setNumber(packedIssuedAt, uint64(t.issuedAt))   //nolint:gosec // G115: time reads it back
	p.setNumber(packedExpires, uint64(t.expires))     //nolint:gosec // the same
	p.setNumber(packedNotBefore, uint64(t.notBefore)) //nolint:gosec // the same
	binary.LittleEndian.PutUint16(p[packedGroup:], a.group)
	if t.reissued {
		p[packedFlags] |= flagReissued
	}
	p.setCredential(a)
	for n, text := range texts {
		binary.LittleEndian.PutUint16(p[packedLengths+2*n:], uint16(len(text))) //nolint:gosec // G115: looked at above
		p = append(p, text...)
	}
	return p
}

// unpack is the reverse of pack. What most tokens have in common is not copied.
func (p packedToken) unpack(i *Issuer, a *Access) {
	t := &a.Token
	a.changes, a.version, t.epoch = p.number(packedChanges), p.number(packedVersion), p.number(packedEpoch)
	t.issuedAt, t.expires, t.notBefore = p.time(packedIssuedAt), p.time(packedExpires), p.time(packedNotBefore)
	a.ends = p.time(packedEnds)
	a.group = binary.LittleEndian.Uint16(p[packedGroup:])
	a.requestsPerSecond = binary.LittleEndian.Uint32(p[packedLimit:])
	a.ended = p[packedFlags]&flagEnded != 0
	t.reissued = p[packedFlags]&flagReissued != 0

	texts, at := p[packedHead:], p.length(0)
	t.foreign = string(texts[:at]) != i.policy.Issuer
	keyID := texts[at : at+p.length(1)]
	keys := i.keys()
	if t.keyID = keys.signing.id; string(keyID) != t.keyID { // most are signed by that one
		t.keyID = keys.verify[string(keyID)].id
	}
	at += len(keyID)
	audience := texts[at : at+p.length(2)]
	if t.audience = i.policy.Audience; string(audience) != t.audience {
		t.audience = string(audience)
	}
	at += len(audience)
	rest := string(texts[at:])
	for n, text := range [...]*string{&t.ID, &t.ClientID, &t.Scope, &a.Account} {
		length := p.length(3 + n)
		*text, rest = rest[:length], rest[length:]
	}
}

// update has the token say what is known now, unless what it says of its credential was
// read later.
func (p packedToken) update(a *Access) {
	if !a.Token.reissued {
		p[packedFlags] &^= flagReissued
	}
	account := p[len(p)-p.length(packedTextsCount-1):]
	if p.number(packedChanges) > a.changes || string(account) != a.Account {
		return // in the latter case it is read each time
	}
	p.setCredential(a)
}

// setCredential sets what is known of the credential, but for its account.
func (p packedToken) setCredential(a *Access) {
	p.setNumber(packedChanges, a.changes)
	p.setNumber(packedVersion, a.version)
	p.setNumber(packedEnds, uint64(a.ends)) //nolint:gosec // G115: time reads it back
	binary.LittleEndian.PutUint32(p[packedLimit:], a.requestsPerSecond)
	p[packedFlags] &^= flagEnded
	if a.ended {
		p[packedFlags] |= flagEnded
	}
}

func (p packedToken) number(at int) uint64 { return binary.LittleEndian.Uint64(p[at:]) }

func (p packedToken) setNumber(at int, n uint64) { binary.LittleEndian.PutUint64(p[at:], n) }

func (p packedToken) time(at int) int64 { return int64(p.number(at)) } //nolint:gosec // G115: it was one

// length returns that of one of the texts.
func (p packedToken) length(n int) int {
	return int(binary.LittleEndian.Uint16(p[packedLengths+2*n:]))
}
