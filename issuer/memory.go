package issuer

import (
	"strings"

	"github.com/clientcredentials/caddy-client-credentials/internal/lru"
)

// What is remembered of thousands of credentials should be few objects with few
// pointers to each other: Go's collector follows each of them, again and again.

// pack has a credential be two objects: itself, and its texts. What many
// credentials have alike is shared.
func (c *Credential) pack() {
	texts := []*string{&c.ID, &c.ClientID, &c.Account, &c.CreatedBy, &c.KeysURL}
	if c.Name != nil {
		texts = append(texts, c.Name)
	}
	inOnePiece(texts...)
	if len(c.Hashes) == len(c.onlyHash) {
		c.onlyHash = [1]hashedSecret(c.Hashes)
		c.Hashes = c.onlyHash[:]
	}
	for _, list := range []*[]string{&c.Scopes, &c.Audiences, &c.Named} {
		*list = once(*list)
	}
	if len(c.Grantable) > 0 { // an empty one says something, too
		c.Grantable = once(c.Grantable)
	}
}

// inOnePiece moves texts into one piece of memory.
func inOnePiece(texts ...*string) {
	length := 0
	for _, text := range texts {
		length += len(*text)
	}
	var piece strings.Builder
	piece.Grow(length)
	for _, text := range texts {
		piece.WriteString(*text)
	}
	rest := piece.String()
	for _, text := range texts {
		*text, rest = rest[:len(*text)], rest[len(*text):]
	}
}

// lists are those that credentials have, of scopes for one, by their texts.
var lists = lru.New[string, []string](1000)

// once returns the same list for all that say the same.
func once(list []string) []string {
	if len(list) == 0 {
		return nil
	}
	text := strings.Join(list, " ") // which none of them holds
	known, ok := lists.Get(text)
	if !ok {
		known = list
		lists.Put(text, list, 1)
	}
	return known
}
