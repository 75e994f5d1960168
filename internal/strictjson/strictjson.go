// Package strictjson reads JSON objects without the leniency of encoding/json,
// which folds the case of member names, lets the last of two equal members win,
// and replaces broken text by U+FFFD. Where a decision about access hangs on a
// member, two readers of the same bytes must never see different values
// (RFC 8725 section 2.4, RFC 8259 section 8).
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Object splits one JSON object into its members, named exactly as sent. It
// refuses anything but a single object, two members of one name, invalid
// UTF-8, and escapes of lone surrogates.
func Object(data []byte) (map[string]json.RawMessage, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("not valid UTF-8")
	}
	if !surrogatesPaired(data) {
		return nil, errors.New("an escape names half of a surrogate pair")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	members := make(map[string]json.RawMessage)
	for dec.More() {
		tok, err := dec.Token()
		if err != nil {
			return nil, errors.New("not valid JSON")
		}
		name, ok := tok.(string)
		if !ok {
			return nil, errors.New("not valid JSON")
		}
		if _, twice := members[name]; twice {
			return nil, errors.New("a member appears twice")
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, errors.New("not valid JSON")
		}
		members[name] = value
	}
	if _, err := dec.Token(); err != nil { // the closing brace
		return nil, errors.New("not valid JSON")
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	return members, nil
}

// String returns the value of a JSON string, and false for any other JSON.
func String(raw json.RawMessage) (string, bool) {
	if len(raw) == 0 || raw[0] != '"' {
		return "", false
	}
	var s string
	if json.Unmarshal(raw, &s) != nil {
		return "", false
	}
	return s, true
}

// Strings returns the value of a JSON array of strings, and false for any other
// JSON. It is never nil where the array is empty.
func Strings(raw json.RawMessage) ([]string, bool) {
	var elements []json.RawMessage
	if json.Unmarshal(raw, &elements) != nil || elements == nil {
		return nil, false
	}
	all := make([]string, len(elements))
	for n, element := range elements {
		var ok bool
		if all[n], ok = String(element); !ok {
			return nil, false
		}
	}
	return all, true
}

// Null reports whether raw is absent or the JSON null.
func Null(raw json.RawMessage) bool {
	return len(raw) == 0 || string(raw) == "null"
}

// surrogatesPaired reports whether every \uD800–\uDFFF escape is half of a
// pair. A backslash that is itself escaped starts no escape.
func surrogatesPaired(data []byte) bool {
	for i := 0; i < len(data); i++ {
		if data[i] != '\\' {
			continue
		}
		high, ok := escapedUnit(data[i:])
		if !ok {
			i++ // skips the escaped character
			continue
		}
		i += 5
		if !utf16.IsSurrogate(high) {
			continue
		}
		low, ok := escapedUnit(data[i+1:])
		if !ok || utf16.DecodeRune(high, low) == utf8.RuneError {
			return false
		}
		i += 6
	}
	return true
}

func escapedUnit(data []byte) (rune, bool) {
	if len(data) < 6 || data[0] != '\\' || data[1] != 'u' {
		return 0, false
	}
	unit, err := strconv.ParseUint(string(data[2:6]), 16, 16)
	return rune(unit), err == nil
}
