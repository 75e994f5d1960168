package handler

import (
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"strings"

	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

var (
	errSeveralAuthorizations = errors.New("more than one Authorization header field")
	errMalformedBearer       = errors.New("the Authorization header field is not the word Bearer, a space, and one token")
	errMalformedBasic        = errors.New("the Basic credentials can't be read")
	errSeveralMechanisms     = errors.New("the client authenticates in more than one way")
	errDifferentClientIDs    = errors.New("the client ids of the Authorization header field and of the body differ")
	errAssertionType         = errors.New("client_assertion goes with a client_assertion_type of jwt-bearer")
)

// bearerToken returns the Authorization header field and the token in it, RFC
// 6750 section 2.1, or an empty text where there is none: tokens anywhere else,
// such as in the query, are not looked at. Whether it has the alphabet of a token
// is for token68 to say, where that matters.
func bearerToken(header http.Header) (field, token string, err error) {
	if values := header["Authorization"]; len(values) == 1 { // what nearly all send, for less
		if token, usual := strings.CutPrefix(values[0], "Bearer "); usual && token != "" && token[0] != ' ' {
			return values[0], token, nil
		}
	}
	field, scheme, rest, err := authorization(header)
	if err != nil || !strings.EqualFold(scheme, "bearer") {
		return "", "", err
	}
	token = strings.TrimLeft(rest, " ") // RFC 9110 section 11.4: 1*SP
	if token == "" {
		return "", "", errMalformedBearer
	}
	return field, token, nil
}

// bodyAuthentication is what a client shows in the body.
type bodyAuthentication struct {
	clientID, secret, assertion, assertionType string
}

const (
	assertionType      = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" // RFC 7523 section 2.2
	assertionParam     = "client_assertion"
	assertionTypeParam = "client_assertion_type"
)

// take takes a parameter by its name in RFC 6749 and 7521, if it is one of
// those by which a client authenticates.
func (b *bodyAuthentication) take(name, value string) {
	switch name {
	case "client_id":
		b.clientID = value
	case "client_secret":
		b.secret = value
	case assertionParam:
		b.assertion = value
	case assertionTypeParam:
		b.assertionType = value
	}
}

// clientAuthentication returns what the client shows in the Authorization
// header field or else in the body. RFC 6749 section 2.3: one method in each
// request.
func (c *ClientCredentials) clientAuthentication(r *http.Request, body bodyAuthentication) (auth issuer.ClientAuthentication, err error) {
	if auth, err = c.shownBy(r.Header, body); err != nil {
		return auth, err
	}
	id := auth.ClientID
	auth.Suspect = func() bool { return c.isSuspect(r, id) }
	return auth, nil
}

func (c *ClientCredentials) shownBy(header http.Header, body bodyAuthentication) (issuer.ClientAuthentication, error) {
	auth := issuer.ClientAuthentication{ClientID: body.clientID}
	basic, usesBasic, err := basicAuthorization(header)
	if err != nil {
		return auth, err
	}
	asserts := body.assertion != "" || body.assertionType != ""
	switch {
	case usesBasic && (body.secret != "" || asserts), body.secret != "" && asserts:
		return auth, errSeveralMechanisms
	case usesBasic && body.clientID != "" && body.clientID != basic.ClientID:
		return auth, errDifferentClientIDs
	case usesBasic:
		return basic, nil
	case asserts && (body.assertion == "" || body.assertionType != assertionType):
		return auth, errAssertionType
	case asserts:
		auth.Assertion = &issuer.Assertion{JWT: body.assertion, Audiences: c.assertionAudiences()}
	case body.secret != "":
		auth.Secrets = []string{body.secret}
	}
	return auth, nil
}

// basicAuthorization returns what HTTP Basic carries, as it can be read: RFC
// 6749 section 2.3.1 has both parts form-encoded, and many clients do not do
// it. It reports whether the request uses HTTP Basic. Another scheme is not
// client authentication, and is not looked at.
func basicAuthorization(header http.Header) (basic issuer.ClientAuthentication, used bool, err error) {
	_, scheme, rest, err := authorization(header)
	if err != nil || !strings.EqualFold(scheme, "basic") {
		return basic, false, err
	}
	decoded, err := base64.StdEncoding.DecodeString(strings.TrimLeft(rest, " "))
	if err != nil {
		return basic, false, errMalformedBasic
	}
	user, password, found := strings.Cut(string(decoded), ":")
	if !found {
		return basic, false, errMalformedBasic
	}
	basic = issuer.ClientAuthentication{ClientID: user, Secrets: []string{password}}
	if id, err := url.QueryUnescape(user); err == nil {
		basic.ClientID = id
	}
	if secret, err := url.QueryUnescape(password); err == nil && secret != password {
		basic.Secrets = append(basic.Secrets, secret)
	}
	return basic, true, nil
}

// authorization returns the one Authorization header field, and its parts before
// and from the end of its scheme. Without the field, all are empty.
func authorization(header http.Header) (field, scheme, rest string, err error) {
	values := header["Authorization"]
	switch len(values) {
	case 0:
		return "", "", "", nil
	case 1:
	default:
		return "", "", "", errSeveralAuthorizations
	}
	field = values[0]
	for n := range len(field) {
		if c := field[n]; c == ' ' || c == '\t' || c == ',' {
			return field, field[:n], field[n:], nil
		}
	}
	return field, field, "", nil
}

// token68 reports whether s is one by RFC 9110 section 11.2.
func token68(s string) bool {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~+/"
	body := strings.TrimRight(s, "=")
	return body != "" && strings.TrimLeft(body, alphabet) == ""
}
