package phc

import (
	"strings"
	"testing"
)

const secret = "secret of another server"

// Made by other programs than this one.
var made = map[string]string{
	"passlib, PBKDF2 with SHA-256":         "$pbkdf2-sha256$1000$6R1D6P2/13qvtda6F8K4lw$5ZJj.yXgZxQlE5sqYSCYBzUb.iFpjIHmMyXOUEJ/mZs",
	"passlib, PBKDF2 with SHA-512":         "$pbkdf2-sha512$1000$S6m1FgLAGEPIGSOk9N6b8w$jRFFo5GX0yVhGmfmwvRL.7RfuZ.Dz7Bbn3UKmF9peG6JmL/14jczB.hcP4qrnBV78rjO/fWiPChPfUmeSF7tJA",
	"passlib, PBKDF2 with SHA-1":           "$pbkdf2$1000$AUAIYSylNIbwXotRSul9Tw$CXMxofIlIIQIlSeSahse4ntL65k",
	"passlib, scrypt":                      "$scrypt$ln=10,r=8,p=1$rhUCIMQYw/gfY+x9jzFGCA$VO/v78HAuTzltP9LPvadOv5uEnRBcMtkm2v5oHI52qc",
	"passlib, argon2id":                    "$argon2id$v=19$m=1024,t=2,p=2$ae19rzVG6P2/13oPQQhhbA$buI4yt+OJNEcZsK+UxrKxA",
	"passlib, bcrypt":                      "$2b$04$QSZk3uxn4wYtQhx7JeMbEuf7GQw0dxNm7Uuu7V511mAxW0fj7CEpe",
	"argon2, the program":                  "$argon2id$v=19$m=1024,t=3,p=1$c2FsdHNhbHQx$o4VtYx79TCVCQU9DMi7p8pprd++ngETR3ufJmDDPzY0",
	"htpasswd, bcrypt":                     "$2y$04$y6.4hiA/L77MJQOLJaOKxOyTOZrZN8Y1nNY.qrOwdgnAZhtEWlGfG",
	"Python's hashlib, scrypt":             "$scrypt$ln=14,r=8,p=1$MDEyMzQ1Njc4OWFiY2RlZg$ctMh/l8E93l7fewemmTl0tUJT7EYqTCvIxNb0uHOhak",
	"hashlib, PBKDF2 as Hydra writes it":   "$pbkdf2-sha256$i=1000,l=32$MDEyMzQ1Njc4OWFiY2RlZg$oDjVA84xxF1ZeZEZ4w12Ga9xsagpguMfMF3FAAwKSns",
	"the same, with the padding of base64": "$pbkdf2-sha256$i=1000,l=32$MDEyMzQ1Njc4OWFiY2RlZg==$oDjVA84xxF1ZeZEZ4w12Ga9xsagpguMfMF3FAAwKSns=",
	"the same, SHA-1":                      "$pbkdf2-sha1$i=1000,l=32$MDEyMzQ1Njc4OWFiY2RlZg$BbK+vkLEqlAMSDC4JedoITlnImwFpnSucbJdoSp2VWs",
}

func TestAHashFitsItsSecretAlone(t *testing.T) {
	made["this package, slow"] = New(secret)
	made["this package, fast"] = NewFast(secret)
	for by, text := range made {
		h, err := Parse(text)
		switch {
		case err != nil:
			t.Errorf("%s: it %v", by, err)
		case !h.Fits(secret):
			t.Errorf("%s: it does not fit", by)
		case h.Fits(secret+"s") || h.Fits(""):
			t.Errorf("%s: it fits another secret", by)
		}
		last := text[len(text)-2]
		other := "A"
		if last == 'A' {
			other = "B"
		}
		if h, err := Parse(text[:len(text)-2] + other + text[len(text)-1:]); err == nil && h.Fits(secret) {
			t.Errorf("%s: with another digest, it fits still", by)
		}
	}
	if new(Hash).Fits("") {
		t.Error("no hash fits")
	}
}

func TestWhatIsNoHashOrCostsTooMuchIsRefused(t *testing.T) {
	const salt, digest = "MDEyMzQ1Njc4OWFiY2RlZg", "oDjVA84xxF1ZeZEZ4w12Ga9xsagpguMfMF3FAAwKSns"
	for text, says := range map[string]string{
		"":                   "no PHC string",
		"secret":             "no PHC string",
		"$1$salt$0123456789": "not known",
		"$argon2i$v=19$m=64,t=1,p=1$" + salt + "$" + digest:              "not known",
		"$2x$04$QSZk3uxn4wYtQhx7JeMbEuf7GQw0dxNm7Uuu7V511mA":             "faulty",
		"$2b$15$QSZk3uxn4wYtQhx7JeMbEuf7GQw0dxNm7Uuu7V511mAxW0fj7CEpe":   "cost 15",
		"$2b$04$QSZk3uxn4wYtQhx7JeMbEuf7GQw0dxNm7Uuu":                    "not of the form",
		"$2b$99$QSZk3uxn4wYtQhx7JeMbEuf7GQw0dxNm7Uuu7V511mAxW0fj7CEpe":   "not of the form",
		"$argon2id$v=16$m=64,t=1,p=1$" + salt + "$" + digest:             "not of the form",
		"$argon2id$v=19$m=64,t=0,p=1$" + salt + "$" + digest:             "not of the form",
		"$argon2id$v=19$m=64,t=1,p=256$" + salt + "$" + digest:           "not of the form",
		"$argon2id$v=19$m=64,p=1,t=1$" + salt + "$" + digest:             "not of the form",
		"$argon2id$v=19$m=64,t=1,p=1$" + salt + "$" + digest[:16]:        "not of the form",
		"$argon2id$v=19$m=64,t=1,p=1$$" + digest:                         "not of the form",
		"$argon2id$v=19$m=64,t=1,p=1$" + salt:                            "not of the form",
		"$argon2id$v=19$m=131073,t=1,p=1$" + salt + "$" + digest:         "128 MiB",
		"$argon2id$v=19$m=65536,t=17,p=1$" + salt + "$" + digest:         "1024 in all",
		"$scrypt$ln=18,r=8,p=1$" + salt + "$" + digest:                   "128 MiB",
		"$scrypt$ln=62,r=8,p=1$" + salt + "$" + digest:                   "128 MiB",
		"$scrypt$ln=1,r=2147483647,p=2147483647$" + salt + "$" + digest:  "128 MiB",
		"$scrypt$ln=14,r=8,p=1$" + salt:                                  "not of the form",
		"$scrypt$ln=14,r=8$" + salt + "$" + digest:                       "not of the form",
		"$pbkdf2-sha256$i=2000001,l=32$" + salt + "$" + digest:           "2000001 iterations",
		"$pbkdf2-sha256$99999999999999999999$" + salt + "$" + digest:     "not of the form",
		"$pbkdf2-sha256$i=1000,l=64$" + salt + "$" + digest:              "not of the form",
		"$pbkdf2-md5$1000$" + salt + "$" + digest:                        "not of the form",
		"$pbkdf2-sha256$1000$" + salt + "$" + digest + "$x":              "not of the form",
		"$pbkdf2-sha256$1000$" + salt + "$" + strings.Repeat(digest, 30): "longer than",
	} {
		_, err := Parse(text)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want that it says %q", text, err, says)
		}
		if err != nil && text != "" && strings.Contains(err.Error(), digest) {
			t.Errorf("%q: the error repeats it", text)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range made {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		h, err := Parse(text)
		if (err == nil) == (h.fits == nil) {
			t.Fatal("neither a hash nor an error, or both")
		}
	})
}
