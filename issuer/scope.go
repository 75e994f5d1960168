package issuer

import (
	"slices"
	"strings"
)

// The scopes that this server asks of who manages its credentials and tokens.
const (
	ScopeAdmin      = "client-credentials:admin" // does for all of them, in every account
	ScopeRead       = "client-credentials:read"
	ScopeWrite      = "client-credentials:write"
	ScopeIntrospect = "tokens:introspect"
	ScopeRevoke     = "tokens:revoke"
)

// isManagement reports whether the scope is one of those that this server
// itself means something by, now or later.
func isManagement(scope string) bool {
	return strings.HasPrefix(scope, "client-credentials:") || strings.HasPrefix(scope, "tokens:")
}

// ValidScope reports whether s is a scope-token by RFC 6749 section 3.3.
func ValidScope(s string) bool {
	if s == "" || len(s) > 256 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c <= 0x20 || c >= 0x7F || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// SplitScope splits a scope parameter at its single spaces, RFC 6749 section
// 3.3, and drops repetitions. It returns false where the text is no such list.
// The empty text is the empty list.
func SplitScope(s string) ([]string, bool) {
	if s == "" {
		return nil, true
	}
	scopes := strings.Split(s, " ")
	for _, scope := range scopes {
		if !ValidScope(scope) {
			return nil, false
		}
	}
	return sorted(scopes), true
}

// HasAll reports whether all that is needed is among what there is.
func HasAll(have, needed []string) bool {
	for _, one := range needed {
		if !slices.Contains(have, one) {
			return false
		}
	}
	return true
}
