package issuer

import (
	"encoding/binary"
	"encoding/json"
	"time"
)

// packCredential returns a credential as the cache keeps it: its parts, one after
// the other. That is half as long as the store's JSON, and read in a tenth of the
// time.
func packCredential(c *Credential) string {
	p := packing{packed: make([]byte, 0, 512)}
	p.credential(c)
	return string(p.packed)
}

// unpackCredential is the reverse. All texts of the credential are parts of packed.
// It reports false where that is not what packCredential has returned.
func unpackCredential(packed string) (*Credential, bool) {
	p := packing{reads: true, rest: packed}
	c := new(Credential)
	p.credential(c)
	return c, !p.damaged && p.rest == ""
}

// packing goes through the parts of a credential, and writes each of them, or reads
// it: so there is one order of them.
type packing struct {
	packed  []byte // what was written
	reads   bool
	rest    string // what is still to be read
	damaged bool   // what was read was never written
}

func (p *packing) credential(c *Credential) {
	p.text(&c.ID)
	p.text(&c.ClientID)
	packOptional(p, &c.Name, p.text)
	p.text(&c.Account)
	p.text(&c.CreatedBy)
	packList(p, &c.Scopes, p.text)
	packList(p, &c.Audiences, p.text)
	packList(p, &c.Grantable, p.text)
	packOptional(p, &c.Keys, p.keySet)
	p.text(&c.KeysURL)
	packNumber(p, &c.TokenLifetime)
	packNumber(p, &c.TokensPerHour)
	packNumber(p, &c.RequestsPerSecond)
	p.json(&c.Claims)
	p.yesNo(&c.Disabled)
	p.yesNo(&c.Declared)
	packList(p, &c.Named, p.text)
	p.time(&c.Created)
	p.time(&c.Expires)
	p.time(&c.Revoked)
	packNumber(p, &c.Epoch)
	packNumber(p, &c.Version)
	packList(p, &c.Hashes, p.secret)
}

func (p *packing) keySet(set *KeySet) { packList(p, &set.Keys, p.key) }

func (p *packing) key(k *jwk) {
	for _, text := range [...]*string{&k.Type, &k.ID, &k.Use, &k.Algorithm, &k.Curve, &k.X, &k.Y, &k.N, &k.E} {
		p.text(text)
	}
}

func (p *packing) secret(h *hashedSecret) {
	packNumber(p, &h.Pepper)
	p.bytes(h.Hash[:])
	p.text(&h.Slow)
	p.bytes(h.Hint[:])
	packNumber(p, &h.Created)
	packNumber(p, &h.Expires)
}

// packOptional notes whether there is one, and then what pack notes of it.
func packOptional[T any](p *packing, one **T, pack func(*T)) {
	there := *one != nil
	if p.yesNo(&there); !there {
		return
	}
	if p.reads {
		*one = new(T)
	}
	pack(*one)
}

// packList tells no list from an empty one.
func packList[T any](p *packing, list *[]T, pack func(*T)) {
	count := 0 // one more than there are, and 0 where there is no list
	if *list != nil {
		count = len(*list) + 1
	}
	if packNumber(p, &count); count == 0 {
		return
	}
	if p.reads {
		if count < 0 || count-1 > len(p.rest) { // each takes a byte at least
			p.damaged = true
			return
		}
		*list = make([]T, count-1)
	}
	for n := range *list {
		pack(&(*list)[n])
	}
}

func packNumber[T ~int | ~int64 | ~uint64](p *packing, n *T) {
	if p.reads {
		*n = T(p.readNumber())
	} else {
		p.packed = binary.AppendUvarint(p.packed, uint64(*n))
	}
}

// readNumber is binary.Uvarint of a text.
func (p *packing) readNumber() (n uint64) {
	for at := range min(len(p.rest), binary.MaxVarintLen64) {
		b := p.rest[at]
		n |= uint64(b&0x7F) << (7 * at)
		if b < 0x80 {
			p.rest = p.rest[at+1:]
			return n
		}
	}
	p.damaged = true
	return 0
}

func (p *packing) text(s *string) {
	length := len(*s)
	if packNumber(p, &length); p.reads {
		*s = p.take(length)
	} else {
		p.packed = append(p.packed, *s...)
	}
}

// bytes are those of an array.
func (p *packing) bytes(b []byte) {
	if p.reads {
		copy(b, p.take(len(b)))
	} else {
		p.packed = append(p.packed, b...)
	}
}

// take returns so many bytes of what is still to be read.
func (p *packing) take(length int) (taken string) {
	if length < 0 || length > len(p.rest) {
		p.damaged = true
		return ""
	}
	taken, p.rest = p.rest[:length], p.rest[length:]
	return taken
}

// json never finds an empty one: the store's JSON has none of these.
func (p *packing) json(raw *json.RawMessage) {
	text := string(*raw)
	if p.text(&text); p.reads && text != "" {
		*raw = json.RawMessage(text)
	}
}

func (p *packing) yesNo(yes *bool) {
	n := 0
	if *yes {
		n = 1
	}
	packNumber(p, &n)
	*yes = n != 0
}

// zeroTime is the zero time.Time, in seconds since 1970.
const zeroTime = -62135596800

// time is read in UTC, in which all of a credential's times are written.
func (p *packing) time(t *time.Time) {
	seconds, rest := t.Unix()-zeroTime, t.Nanosecond()
	packNumber(p, &seconds)
	packNumber(p, &rest)
	if p.reads {
		*t = time.Unix(seconds+zeroTime, int64(rest)).UTC()
	}
}
