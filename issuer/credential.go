package issuer

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/uuid"
)

// DefaultAccount is the account of a credential that names none.
const DefaultAccount = "default"

const maxNameLength = 200 // characters, by the wire contract

// Credential is a client's registration: the record that the store keeps, and
// what the API shows of it. A Credential that was handed out is never changed.
type Credential struct {
	// ID is the record's own id, a UUID v4.
	ID string `json:"id"`
	// ClientID is 16 random bytes in hexadecimal, or what another server has made.
	ClientID string `json:"client_id"`
	// Name is a label, or nil.
	Name *string `json:"name,omitempty"`
	// Account is whose credential it is: callers see those of their own alone.
	Account string `json:"account"`
	// CreatedBy is the client id of the creator, empty for the command line.
	CreatedBy string `json:"created_by,omitempty"`
	// Scopes are what its tokens may carry.
	Scopes []string `json:"scopes,omitempty"`
	// Audiences are what its tokens may be for; the configured one where it is
	// empty.
	Audiences []string `json:"audiences,omitempty"`
	// Grantable are the scopes that it may give to credentials that it creates; nil
	// for its own, less those for management.
	Grantable []string `json:"grantable,omitzero"`
	// Keys are those that it may authenticate by, beside its secret; or nil.
	Keys *KeySet `json:"jwks,omitempty"`
	// KeysURL is where it publishes them instead; or empty.
	KeysURL string `json:"jwks_uri,omitempty"`
	// TokenLifetime is how long its tokens live; zero for the configured time,
	// which is also the most.
	TokenLifetime time.Duration `json:"token_lifetime,omitempty"`
	Limits
	// Claims are a JSON object of claims that its tokens carry beside their own.
	Claims json.RawMessage `json:"claims,omitempty"`
	// Disabled credentials get no tokens until they are enabled again.
	Disabled bool `json:"disabled,omitempty"`
	// Declared credentials are those of the configuration.
	Declared bool `json:"declared,omitempty"`
	// Named are the members, beyond those of the wire contract, that a request
	// named which made or changed it: every answer of the API shows them.
	Named   []string  `json:"named,omitempty"`
	Created time.Time `json:"created"`
	// Expires is when it stops working; zero for never.
	Expires time.Time `json:"expires,omitzero"`
	// Revoked is when it was revoked; zero while it is not.
	Revoked time.Time `json:"revoked,omitzero"`
	// Epoch rises with every change after which the tokens issued before must
	// be refused. A token carries the epoch it was issued under.
	Epoch uint64 `json:"epoch"`
	// Version rises with every change: of two readings of a credential, the one
	// of the higher version is the later.
	Version uint64         `json:"version"`
	Hashes  []hashedSecret `json:"secrets"` // of the secrets, oldest first
}

// Active reports whether the credential works at the given time.
func (c *Credential) Active(now time.Time) bool { return !c.Disabled && !c.Ended(now) }

// Ended reports whether the credential is revoked or has expired.
func (c *Credential) Ended(now time.Time) bool {
	return !c.Revoked.IsZero() || !c.Expires.IsZero() && !now.Before(c.Expires)
}

// Revision tells one state of the credential from all others, those of a history
// that a restore has given up included.
func (c *Credential) Revision() string { return fmt.Sprintf("%d.%d", c.Epoch, c.Version) }

// Draft is what a caller says of a credential that it wants created.
type Draft struct {
	Name *string
	// Expires is when it shall stop working; zero for never.
	Expires time.Time
	// Account is DefaultAccount where it is empty.
	Account string
	Scopes  []string
	// Audiences is empty for the configured one.
	Audiences []string
	// Grantable is nil for the scopes, less those for management.
	Grantable []string
	// TokenLifetime is zero for the configured one.
	TokenLifetime time.Duration
	Limits
	// Claims are what ParseClaims has returned, or nil.
	Claims    json.RawMessage
	Keys      *KeySet
	KeysURL   string
	CreatedBy string
	// Named goes into the credential as it is.
	Named []string
	// IdempotencyKey is what its creator sends with the same request again, and
	// with no other; or empty.
	IdempotencyKey string
}

// InputError says which field of a request is wrong, and how. Both texts are
// fit for the one who sent it, and repeat nothing of what was sent.
type InputError struct{ Field, Problem string }

func (e *InputError) Error() string { return e.Field + " " + e.Problem }

func (d *Draft) validate(now time.Time) error {
	if d.Name != nil {
		if err := validateName(*d.Name); err != nil {
			return err
		}
	}
	if err := validateExpires(d.Expires, now); err != nil {
		return err
	}
	if !validAccount(d.Account) {
		return errAccount
	}
	if err := validateScopes("scopes", d.Scopes); err != nil {
		return err
	}
	if err := validateScopes("grantable", d.Grantable); err != nil {
		return err
	}
	if d.Keys != nil && d.KeysURL != "" {
		return &InputError{"jwksUri", "does not go with jwks: give one of them"}
	}
	if err := d.Limits.validate(); err != nil {
		return err
	}
	return validateAudiences(d.Audiences)
}

func validateExpires(expires, now time.Time) error {
	switch {
	case expires.IsZero():
	case !expires.After(now):
		return &InputError{"expires", "is in the past"}
	case expires.UTC().Year() > 9999: // RFC 3339 has four digits
		return &InputError{"expires", "is after the year 9999"}
	}
	return nil
}

func validateScopes(field string, scopes []string) error {
	for _, scope := range scopes {
		if !ValidScope(scope) {
			return &InputError{field, "holds a scope that RFC 6749 section 3.3 does not allow: visible ASCII without quotes and backslash"}
		}
	}
	if encodedLength(scopes) > maxScopesLength {
		return &InputError{field, fmt.Sprintf("is longer than %d bytes in a token", maxScopesLength)}
	}
	return nil
}

func validateAudiences(audiences []string) error {
	for _, audience := range audiences {
		if !ValidAudience(audience) {
			return &InputError{"audiences", "holds what is no audience: visible ASCII, without a fragment"}
		}
	}
	if encodedLength(audiences) > maxAudiencesLength {
		return &InputError{"audiences", fmt.Sprintf("is longer than %d bytes in a token", maxAudiencesLength)}
	}
	return nil
}

// A token with all that its credential may have must stay below maxTokenBytes,
// base64 and signature included. The bounds are in bytes.
const (
	maxScopesLength    = 3 << 10
	maxAudiencesLength = 1 << 10
)

// encodedLength returns how many bytes the values take in a token's claims.
func encodedLength(values []string) int {
	text, _ := json.Marshal(values) // of strings: it can't fail
	return len(text)
}

// ValidAudience reports whether an audience is fit for the resource parameter, RFC
// 8707 section 2, though it need not be a URL: visible ASCII characters, without
// spaces and fragment.
func ValidAudience(audience string) bool {
	for i := range len(audience) {
		if c := audience[i]; c <= 0x20 || c >= 0x7F || c == '#' {
			return false
		}
	}
	return audience != ""
}

func validateName(name string) error {
	if !utf8.ValidString(name) {
		return &InputError{"name", "is not valid UTF-8"}
	}
	if utf8.RuneCountInString(name) > maxNameLength {
		return &InputError{"name", fmt.Sprintf("is longer than %d characters", maxNameLength)}
	}
	for _, r := range name {
		if unicode.IsControl(r) {
			return &InputError{"name", "holds a control character"}
		}
	}
	return nil
}

var errAccount = &InputError{"account", "takes 1 to 64 letters, digits and the characters . _ -"}

// validAccount keeps accounts fit for a header field's value.
func validAccount(account string) bool {
	if len(account) < 1 || len(account) > 64 {
		return false
	}
	for i := range len(account) {
		c := account[i]
		switch {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '.', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// newCredential makes the record that d asks for.
func newCredential(d Draft, now time.Time, secret hashedSecret, clientID string) *Credential {
	return &Credential{
		ID:        uuid.NewString(),
		ClientID:  clientID,
		Name:      d.Name,
		Account:   d.Account,
		CreatedBy: d.CreatedBy,
		Scopes:    sorted(d.Scopes),
		Audiences: sorted(d.Audiences),
		Grantable: sorted(d.Grantable),
		Keys:      d.Keys,
		KeysURL:   d.KeysURL,
		Named:     d.Named,
		Created:   now.UTC(),
		Expires:   shown(d.Expires),
		Epoch:     1,
		Version:   1,
		Hashes:    []hashedSecret{secret},

		TokenLifetime: d.TokenLifetime,
		Limits:        d.Limits,
		Claims:        d.Claims,
	}
}

// shown returns the time as the API shows it.
func shown(t time.Time) time.Time { return t.UTC().Truncate(time.Millisecond) }

// sorted returns the values in order and without repetitions.
func sorted(values []string) []string {
	values = slices.Clone(values)
	slices.Sort(values)
	return slices.Compact(values)
}

func newClientID() string {
	return hex.EncodeToString(randomBytes(16))
}

func newSecret() string {
	return base64.StdEncoding.EncodeToString(randomBytes(16))
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails: it ends the process instead
	return b
}

// validClientID keeps client ids fit for the keys of the store, header fields,
// URLs and logs.
func validClientID(id string) bool {
	if len(id) < 1 || len(id) > 128 || id == "." || id == ".." { // which clients of HTTP leave out of a path
		return false
	}
	for i := range len(id) {
		switch c := id[i]; {
		case '0' <= c && c <= '9', 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', c == '.', c == '_', c == '-', c == '~', c == '@':
		default:
			return false
		}
	}
	return true
}

// madeHere reports whether the client id has the form of those that newClientID
// makes.
func madeHere(id string) bool {
	for i := range len(id) {
		if c := id[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(id) == 32
}

func decodeCredential(data []byte) (*Credential, error) {
	c := new(Credential)
	if err := json.Unmarshal(data, c); err != nil {
		return nil, fmt.Errorf("a credential's %w: %w", errUnreadable, err)
	}
	return c, nil
}

// The keys of the store. A credential's record is kept while a token of it may
// live, and longer: it is the state that says what its tokens are worth.
const (
	credentialPrefix = "credential/"

	revokedTokenPrefix = "revoked_token/" // revoked_token/<client id>/<jti>, while the token would live, and clockSetBack longer
	revokedUntilPrefix = "revoked_until/" // revoked_until/<when to remove it>/<client id>/<jti>
)

func credentialKey(clientID string) string { return credentialPrefix + clientID }

func revokedTokenKey(clientID, id string) string { return revokedTokenPrefix + clientID + "/" + id }

// revokedUntilKey sorts the keys of revoked tokens by the time until which they
// are needed, to the second.
func revokedUntilKey(revokedTokenKey string, until time.Time) string {
	return fmt.Sprintf("%s%020d/%s", revokedUntilPrefix, until.Unix(), strings.TrimPrefix(revokedTokenKey, revokedTokenPrefix))
}
