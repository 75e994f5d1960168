package strictjson

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestObjectRefusesWhatTwoReadersCouldReadDifferently(t *testing.T) {
	for _, refused := range []string{
		``, ` `, `null`, `[]`, `"x"`, `1`, `true`, `{`, `{"a"}`, `{"a":1,}`, `{a:1}`,
		`{"a":1,"a":2}`, `{"a":1}{}`, `{"a":1} x`, `{"a":1}]`,
		"{\"a\":\"\xff\"}", "\ufeff{}", `{"a":"\ud800"}`, `{"a":"\udc00"}`, `{"a":"\ud800\ud800"}`,
		`{"a":"\udc00\ud800"}`, `{"\ud800":1}`, `{"a":["\ud800x"]}`, "{\"a\":\"\x00\"}",
		// A member name that is only equal once its escape is read.
		`{"a":1,"\u0061":2}`,
	} {
		if got, err := Object([]byte(refused)); err == nil {
			t.Errorf("Object(%q) = %v, want an error", refused, got)
		}
	}
}

func TestObjectKeepsNamesAndValuesAsSent(t *testing.T) {
	got, err := Object([]byte(` {"name":"\ud83d\ude00","Name":"\\ud800","n\u00e9":{"x":[1,2]}, "z":null}` + "\n"))
	if err != nil {
		t.Fatal(err)
	}
	if s, ok := String(got["name"]); !ok || s != "😀" {
		t.Errorf("name = %q, %v", s, ok)
	}
	if s, ok := String(got["Name"]); !ok || s != `\ud800` {
		t.Errorf("Name = %q, %v", s, ok)
	}
	if string(got["né"]) != `{"x":[1,2]}` {
		t.Errorf("né = %s", got["né"])
	}
	if !Null(got["z"]) || !Null(got["absent"]) || Null(got["name"]) {
		t.Error("Null tells null and absent from a value")
	}
	if _, ok := String(got["z"]); ok {
		t.Error("null is not a string")
	}
}

func TestObjectRefusesWhatIsNotJSON(t *testing.T) {
	utf16LE := "{\x00\"\x00a\x00\"\x00:\x001\x00}\x00"
	for name, refused := range map[string]string{
		"no comma":                `{"a":1 "b":2}`,
		"two commas":              `{"a":1,,"b":2}`,
		"comma first":             `{,"a":1}`,
		"comma last":              `{"a":1,"b":2,}`,
		"no colon":                `{"a" 1}`,
		"two colons":              `{"a"::1}`,
		"no value":                `{"a":}`,
		"no closing brace":        `{"a":1`,
		"closed by a bracket":     `{"a":1]`,
		"nested, not closed":      `{"a":{"b":1}`,
		"nested, closed wrongly":  `{"a":[1}}`,
		"closing brace only":      `}`,
		"name a number":           `{1:2}`,
		"name null":               `{null:2}`,
		"name an object":          `{{}:2}`,
		"name in single quotes":   `{'a':1}`,
		"value in single quotes":  `{"a":'1'}`,
		"comment":                 `{"a":1/* */}`,
		"line comment":            "{\"a\":1}//x",
		"NaN":                     `{"a":NaN}`,
		"infinity":                `{"a":-Infinity}`,
		"leading zero":            `{"a":01}`,
		"plus sign":               `{"a":+1}`,
		"hexadecimal":             `{"a":0x10}`,
		"digits grouped":          `{"a":1_000}`,
		"no digit before a point": `{"a":.5}`,
		"no digit behind a point": `{"a":1.}`,
		"no exponent":             `{"a":1e}`,
		"True":                    `{"a":True}`,
		"nul":                     `{"a":nul}`,
		"unknown escape":          `{"a":"\x41"}`,
		"short escape":            `{"a":"\u004"}`,
		"escape of no digits":     `{"a":"\uZZZZ"}`,
		"backslash at the end":    `{"a":"\`,
		"escape at the end":       `{"a":"\ud83d`,
		"raw line break":          "{\"a\":\"\n\"}",
		"raw tab in a name":       "{\"a\t\":1}",
		"text not closed":         `{"a":"x}`,
		"byte order mark":         "\xef\xbb\xbf{}",
		"UTF-16":                  utf16LE,
		"UTF-16 with a mark":      "\xff\xfe" + utf16LE,
		"NUL behind":              "{\"a\":1}\x00",
		"NUL before":              "\x00{\"a\":1}",
		"no-break space":          "{\u00a0\"a\":1}",
		"form feed":               "{\f\"a\":1}",
		"two objects":             `{"a":1} {"a":1}`,
		"a comma behind":          `{"a":1},`,
		"a brace behind":          `{"a":1}}`,
		"an array around":         `[{"a":1}]`,
		"an overlong encoding":    "{\"a\":\"\xc0\x80\"}",
		"an encoded surrogate":    "{\"a\":\"\xed\xa0\x80\"}",
		"beyond Unicode":          "{\"a\":\"\xf4\x90\x80\x80\"}",
		"half a character":        "{\"a\":\"\xf0\x9f\x98\"}",
		"invalid UTF-8 in a name": "{\"\xff\":1}",
		"invalid UTF-8 deep":      "{\"a\":[{\"b\":\"\xff\"}]}",
	} {
		if got, err := Object([]byte(refused)); err == nil {
			t.Errorf("%s: Object(%q) = %v, want an error", name, refused, got)
		}
	}
}

func TestObjectRefusesHalfASurrogatePairWhereverItStands(t *testing.T) {
	for _, text := range []string{
		`\ud800`, `\uD800`, `\uDBFF`, `\udfff`, `\udc00`, `x\ud83dx`, `\ud83d\n`, `\ud83d\\ude00`, `\ud83d \ude00`,
		`\ud83d\u0041`, `\ud83d\ud83d\ude00`, `\ud83d\ude00\ude00`, `\\\ud800`, `\ude00\ud83d`,
	} {
		for _, refused := range []string{`{"a":"` + text + `"}`, `{"` + text + `":1}`, `{"a":{"b":["` + text + `"]}}`} {
			if got, err := Object([]byte(refused)); err == nil {
				t.Errorf("Object(%s) = %v, want an error", refused, got)
			}
		}
	}
	for text, want := range map[string]string{
		`\ud83d\ude00`:             "😀",
		`\uD83D\uDE00\ud83d\ude01`: "😀😁",
		`\\ud800`:                  `\ud800`,
		`\\\\ud800`:                `\\ud800`,
		`\"\\`:                     `"\`,
		`\u005cud800`:              `\ud800`,
		`\ud7ff\ue000\ufffd`:       "\ud7ff\ue000\ufffd",
		`\u0000`:                   "\x00",
	} {
		got, err := Object([]byte(`{"a":"` + text + `"}`))
		if err != nil {
			t.Errorf("Object(%s): %v", text, err)
			continue
		}
		if s, ok := String(got["a"]); !ok || s != want {
			t.Errorf("String(%s) = %q, %v, want %q", text, s, ok, want)
		}
	}
}

func TestObjectRefusesTwoMembersOfOneNameHoweverTheyAreSpelled(t *testing.T) {
	for _, refused := range []string{
		`{"exp":1,"exp":2}`, `{"exp":1,"exp":1}`, `{"exp":1,"x":0,"exp":2}`, `{"e\u0078p":1,"exp":2}`,
		`{"exp":1,"\u0065\u0078\u0070":2}`, `{"":1,"":2}`, `{"😀":1,"\ud83d\ude00":2}`, `{"/":1,"\/":2}`,
	} {
		if got, err := Object([]byte(refused)); err == nil {
			t.Errorf("Object(%s) = %v, want an error", refused, got)
		}
	}
	// encoding/json would take each of these for "scope" or "kid".
	got, err := Object([]byte(`{"scope":"read","Scope":"1","SCOPE":"2","\u017fcope":"3","scope ":"4","kid":"5","\u212aid":"6","é":7,"e\u0301":8}`))
	if err != nil {
		t.Fatal(err)
	}
	names := slices.Sorted(maps.Keys(got))
	if want := []string{"SCOPE", "Scope", "e\u0301", "kid", "scope", "scope ", "é", "ſcope", "\u212aid"}; !slices.Equal(names, want) {
		t.Errorf("the names are %q, want %q", names, want)
	}
	if s, _ := String(got["scope"]); s != "read" {
		t.Errorf("scope = %q", s)
	}
}

func TestObjectKeepsValuesToTheByte(t *testing.T) {
	for _, value := range []string{
		`9007199254740993`, `1e400`, `-0`, `0.10`, `1E+2`, `123456789012345678901234567890`, `{"b":1,"b":2}`, `[ 1 , 2 ]`, `"\u0041"`,
	} {
		got, err := Object([]byte("\t{ \"a\" : " + value + " }\r\n"))
		if err != nil || string(got["a"]) != value {
			t.Errorf("Object keeps %s as %s, %v", value, got["a"], err)
		}
	}
	if got, err := Object([]byte("{}")); err != nil || len(got) != 0 {
		t.Errorf("Object of no members = %v, %v", got, err)
	}
}

func TestObjectRefusesWhatIsNestedTooDeep(t *testing.T) {
	const depth = 100_000
	for _, refused := range []string{
		`{"a":` + strings.Repeat("[", depth) + strings.Repeat("]", depth) + `}`,
		strings.Repeat(`{"a":`, depth) + "1" + strings.Repeat("}", depth),
		`{"a":` + strings.Repeat("[", depth),
	} {
		if _, err := Object([]byte(refused)); err == nil {
			t.Errorf("Object took %d levels", depth)
		}
	}
}

func TestErrorsRepeatNothingOfTheText(t *testing.T) {
	for _, refused := range []string{
		`{"topsecret":1,"topsecret":2}`, `{"a":topsecret}`, `topsecret`, `{"a":1}topsecret`, `{"topsecret":"\ud800"}`, "{\"topsecret\":\"\xff\"}", `{"topsecret"`,
	} {
		if _, err := Object([]byte(refused)); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("Object(%q) = %v, want an error that repeats nothing", refused, err)
		}
	}
}

func TestStringReadsTextAndNothingElse(t *testing.T) {
	for raw, want := range map[string]string{`"x"`: "x", `""`: "", `"\u0041\n"`: "A\n", `"null"`: "null"} {
		if got, ok := String(json.RawMessage(raw)); !ok || got != want {
			t.Errorf("String(%s) = %q, %v, want %q", raw, got, ok, want)
		}
	}
	for _, raw := range []string{``, `null`, `1`, `true`, `["x"]`, `{"x":"x"}`, `x`, `"x`, `"x"y`, `'x'`} {
		if got, ok := String(json.RawMessage(raw)); ok {
			t.Errorf("String(%s) = %q, want none", raw, got)
		}
	}
}

// What Object takes, any reader of JSON must read in the same way.
func FuzzObject(f *testing.F) {
	for _, seed := range []string{
		`{}`, `null`, `{"a":1}`, `{"a":1,"a":2}`, `{"a":"\ud83d\ude00","b":[{"c":null}]}`, `{"a":"\ud800"}`, "{\"a\":\"\xff\"}",
		` {"a" : 1e400 } `, `{"a":1}{`, `{"\u0061":1,"a":2}`, `{"a":1,}`, `{"a":1]`, `[{"a":1}]`, `{"a":"\\"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := Object(data)
		if err != nil {
			return
		}
		if !utf8.Valid(data) || !json.Valid(data) {
			t.Fatalf("Object took %q", data)
		}
		names, depth := 0, 0
		dec := json.NewDecoder(strings.NewReader(string(data)))
		for {
			tok, err := dec.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			switch tok {
			case json.Delim('{'), json.Delim('['):
				depth++
			case json.Delim('}'), json.Delim(']'):
				depth--
			}
			if name, ok := tok.(string); ok && depth == 1 {
				if _, kept := got[name]; !kept {
					t.Fatalf("Object lost %q of %q", name, data)
				}
				names++
				var skipped json.RawMessage
				if err := dec.Decode(&skipped); err != nil || string(skipped) != string(got[name]) {
					t.Fatalf("Object read %q of %q as %s", name, data, got[name])
				}
			}
		}
		if names != len(got) {
			t.Fatalf("Object made %d members of the %d of %q", len(got), names, data)
		}
	})
}
