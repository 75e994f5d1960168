package handler

import (
	"bytes"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// problem is an error document by RFC 9457.
type problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`

	ClientID string `json:"clientId,omitempty"` // of the credential that it is about
}

func writeProblem(w http.ResponseWriter, status int, detail string) {
	writeBody(w, status, "application/problem+json", marshal(problem{
		Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail,
	}))
}

// writeJSON answers in the JSON media type that the client prefers.
func writeJSON(w http.ResponseWriter, r *http.Request, status int, v any) {
	body, mediaType := marshal(v), preferredJSON(r.Header.Values("Accept"))
	if strings.HasPrefix(mediaType, "text/") {
		body = ascii(body)
	}
	writeBody(w, status, mediaType, body)
}

// unkept are the header fields of writeBody, under their canonical names.
var unkept = [...]string{"Content-Type", "Content-Length", "Cache-Control", "Pragma", "X-Content-Type-Options"}

// writeBody answers with what nobody may keep: RFC 6749 section 5.1 wants both
// fields, and the credential endpoints answer with secrets too.
func writeBody(w http.ResponseWriter, status int, mediaType string, body []byte) {
	header := w.Header()
	values := []string{mediaType, strconv.Itoa(len(body)), "no-store", "no-cache", "nosniff"}
	for n, name := range unkept {
		header[name] = values[n : n+1 : n+1] // one that is added to does not grow into the next
	}
	w.WriteHeader(status)
	_, _ = w.Write(body)
}

// publicMaxAge is how long the answers to writePublic may be kept, in seconds.
var publicMaxAge = strconv.Itoa(int(issuer.KeySetMaxAge.Seconds()))

// writePublic answers a GET with what everybody may know and keep for a while,
// pages of other origins included.
func writePublic(w http.ResponseWriter, r *http.Request, v any) {
	writePublicText(w, r, marshal(v))
}

// writePublicText is writePublic for a JSON text.
func writePublicText(w http.ResponseWriter, r *http.Request, body []byte) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		methodNotAllowed(w, "GET, HEAD")
		return
	}
	header := w.Header()
	header.Set("Content-Type", preferredJSON(r.Header.Values("Accept")))
	header.Set("Content-Length", strconv.Itoa(len(body)))
	header.Set("Cache-Control", "public, max-age="+publicMaxAge)
	header.Set("Vary", "Accept")
	header.Set("Access-Control-Allow-Origin", "*")
	header.Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(body)
}

// marshal encodes what always can be encoded: this package's own documents.
func marshal(v any) []byte {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false) // it is not HTML
	if err := enc.Encode(v); err != nil {
		panic(fmt.Sprintf("encoding %T: %v", v, err))
	}
	return bytes.TrimRight(buf.Bytes(), "\n")
}

// jsonTypes are the media types that an answer can have. The first wins a tie.
var jsonTypes = [...]string{"application/json", "text/json", "text/plain"}

// preferredJSON chooses among them by RFC 9110 section 12.5.1. An Accept that
// takes none of them gets the default: an answer in the wrong type is of more
// use than none.
func preferredJSON(accept []string) string {
	best := jsonTypes[0]
	if len(accept) == 0 || len(accept) == 1 && (accept[0] == "*/*" || accept[0] == best) { // the usual ones
		return best
	}
	bestQuality := 0.0
	for n, quality := range jsonQualities(accept) {
		if quality > bestQuality {
			best, bestQuality = jsonTypes[n], quality
		}
	}
	return best
}

// jsonQualities returns the weight that the most specific range of the Accept
// header field gives to each of jsonTypes.
func jsonQualities(accept []string) (qualities [len(jsonTypes)]float64) {
	var specificities [len(jsonTypes)]int
	for _, field := range accept {
		for element := range strings.SplitSeq(field, ",") {
			mediaRange, params, err := mime.ParseMediaType(element)
			if err != nil {
				continue
			}
			q := 1.0
			if weight, ok := params["q"]; ok {
				if q, err = strconv.ParseFloat(weight, 64); err != nil || q < 0 || q > 1 {
					continue
				}
			}
			for n, mediaType := range jsonTypes {
				if match := specificity(mediaRange, mediaType); match > specificities[n] {
					qualities[n], specificities[n] = q, match
				}
			}
		}
	}
	return qualities
}

// specificity tells how closely a media range means a media type; 0 where it
// does not.
func specificity(mediaRange, mediaType string) int {
	major, _, _ := strings.Cut(mediaType, "/")
	switch mediaRange {
	case mediaType:
		return 3
	case major + "/*":
		return 2
	case "*/*":
		return 1
	}
	return 0
}

// ascii escapes what is not ASCII in a JSON text. The text types have no
// charset of their own (RFC 6657), and clients guess differently.
func ascii(text []byte) []byte {
	out := make([]byte, 0, len(text))
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		switch {
		case r < utf8.RuneSelf:
			out = append(out, text[0])
		case r > 0xFFFF:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		text = text[size:]
	}
	return out
}
