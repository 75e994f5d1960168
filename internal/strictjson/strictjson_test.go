package strictjson

import "testing"

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
