package handler

import (
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
)

// maxBody bounds the body of a request to an endpoint.
const maxBody = 64 << 10

// errTooLarge says that a body is larger than maxBody.
var errTooLarge = errors.New("the request body is larger than 64 KiB")

// readBody reads the whole body, up to maxBody.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
		return nil, errTooLarge
	}
	if err != nil {
		return nil, errors.New("the request body can't be read")
	}
	return body, nil
}

// mediaType returns the type of the request's body and its parameters. It
// returns an empty type where the header field is missing, repeated or
// malformed, where the charset is another than UTF-8, and where the body is
// encoded: none of these is ever guessed.
func mediaType(header http.Header) (string, map[string]string) {
	values := header["Content-Type"]
	if len(values) != 1 {
		return "", nil
	}
	name, params := values[0], map[string]string(nil)
	if name != "application/x-www-form-urlencoded" && name != "application/json" { // the usual spellings
		var err error
		if name, params, err = mime.ParseMediaType(name); err != nil {
			return "", nil
		}
	}
	if charset, ok := params["charset"]; ok && !strings.EqualFold(charset, "utf-8") {
		return "", nil
	}
	if coding := header.Get("Content-Encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		return "", nil
	}
	return name, params
}

func unsupportedMediaType(w http.ResponseWriter) {
	w.Header().Set("Accept", "application/json")
	writeProblem(w, http.StatusUnsupportedMediaType,
		"the body must be application/json, text/json or application/*+json, in UTF-8 and without a content coding")
}

// isJSON reports whether a media type is one of those that the endpoints take
// as JSON.
func isJSON(mediaType string) bool {
	return mediaType == "application/json" || mediaType == "text/json" ||
		strings.HasPrefix(mediaType, "application/") && strings.HasSuffix(mediaType, "+json")
}
