package handler

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/clientcredentials/caddy-client-credentials/internal/strictjson"
	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// AdminImportPath takes credentials that other servers have made, and
// AdminExportPath gives those of this one: a JSON object in each line.
const (
	AdminImportPath = AdminPath + "/import"
	AdminExportPath = AdminPath + "/export"
)

// ImportedLine says what has become of a line of an import.
type ImportedLine struct {
	Line     int    `json:"line"`
	ClientID string `json:"clientId,omitempty"`
	Error    string `json:"error,omitempty"`
}

// portableCredential is a line of an export. An import takes these members too,
// and `secret` instead of `secrets`.
type portableCredential struct {
	ClientID      string           `json:"clientId"`
	Name          *string          `json:"name,omitempty"`
	Account       string           `json:"account"`
	Created       timestamp        `json:"created"`
	Expires       *timestamp       `json:"expires,omitempty"`
	Scopes        []string         `json:"scopes"`
	Audiences     []string         `json:"audiences,omitempty"`
	Grantable     []string         `json:"grantable,omitempty"`
	TokenLifetime string           `json:"tokenLifetime,omitempty"`
	TokensPerHour int              `json:"tokensPerHour,omitempty"`
	PerSecond     int              `json:"requestsPerSecond,omitempty"`
	Claims        json.RawMessage  `json:"claims,omitempty"`
	Keys          *issuer.KeySet   `json:"jwks,omitempty"`
	KeysURL       string           `json:"jwksUri,omitempty"`
	Enabled       *bool            `json:"enabled,omitempty"`
	Secrets       []portableSecret `json:"secrets"`
}

type portableSecret struct {
	Hash    string     `json:"hash"`
	Hint    string     `json:"hint,omitempty"`
	Created *timestamp `json:"created,omitempty"`
	Expires *timestamp `json:"expires,omitempty"`
}

const (
	maxImportLine  = 64 << 10 // bytes
	maxImportBatch = 256
)

// ImportLines keeps the credential of each line of JSON that the reader has, each
// on its own, or only looks whether it could, and reports what has become of them,
// in order. It returns an error where it could not read on.
func ImportLines(ctx context.Context, iss *issuer.Issuer, lines io.Reader, try bool, report func(ImportedLine) error) error {
	scanner := bufio.NewScanner(lines)
	scanner.Buffer(nil, maxImportLine)
	batch := importBatch{issuer: iss, try: try, known: make(map[string]bool), report: report}
	number := 0
	for scanner.Scan() {
		number++
		if len(scanner.Bytes()) == 0 {
			continue
		}
		if err := batch.add(ctx, newImporting(number, scanner.Bytes())); err != nil {
			return err
		}
	}
	if err := batch.carryOut(ctx); err != nil {
		return err
	}
	if errors.Is(scanner.Err(), bufio.ErrTooLong) {
		return report(ImportedLine{Line: number + 1, Error: "is longer than 64 KiB: nothing after it was read"})
	}
	return scanner.Err()
}

// importing is a line of an import, and what becomes of it.
type importing struct {
	ImportedLine
	credential issuer.Import
}

func newImporting(number int, line []byte) importing {
	one := importing{ImportedLine: ImportedLine{Line: number}}
	var err error
	if one.credential, err = ParseImport(line); err != nil {
		one.Error = err.Error()
	} else {
		one.ClientID = one.credential.ClientID
	}
	return one
}

// importBatch carries out lines together, so that they share the store's syncs. No
// two of them are of one client id.
type importBatch struct {
	issuer *issuer.Issuer
	try    bool
	known  map[string]bool // those that would have been kept, where nothing is
	report func(ImportedLine) error
	lines  []importing
}

func (b *importBatch) add(ctx context.Context, one importing) error {
	same := func(other importing) bool { return one.ClientID != "" && other.ClientID == one.ClientID }
	if len(b.lines) == maxImportBatch || slices.ContainsFunc(b.lines, same) {
		if err := b.carryOut(ctx); err != nil {
			return err
		}
	}
	b.lines = append(b.lines, one)
	return nil
}

func (b *importBatch) carryOut(ctx context.Context) error {
	var all sync.WaitGroup
	for n := range b.lines {
		if one := &b.lines[n]; one.Error == "" {
			all.Go(func() { b.carryOutOne(ctx, one) })
		}
	}
	all.Wait()
	for _, one := range b.lines {
		if one.Error == "" && b.try {
			b.known[one.ClientID] = true
		}
		if err := b.report(one.ImportedLine); err != nil {
			return err
		}
	}
	b.lines = b.lines[:0]
	return nil
}

func (b *importBatch) carryOutOne(ctx context.Context, one *importing) {
	err := issuer.ErrExists
	if !b.known[one.ClientID] {
		err = b.issuer.Import(ctx, one.credential, b.try)
	}
	var input *issuer.InputError
	switch {
	case err == nil:
	case errors.Is(err, issuer.ErrExists), errors.Is(err, issuer.ErrFull), errors.As(err, &input):
		one.Error = err.Error()
	default:
		adminLog().Error("importing a credential", zap.Error(err))
		one.Error = "the server can't do this now: its log says why"
	}
}

// ParseImport reads a line of an import. It returns an *issuer.InputError where it
// is wrong.
func ParseImport(line []byte) (m issuer.Import, err error) {
	if m.Draft, err = parseDraft(line); err != nil {
		return m, err
	}
	members, err := strictjson.Object(line)
	if err != nil {
		return m, err
	}
	enabled := true
	for name, raw := range members {
		wrong := &issuer.InputError{Field: name, Problem: "is of the wrong type"}
		ok := true
		switch name {
		case "name", "expires", "account", "scopes", "audiences", "grantable", "tokenLifetime", "tokensPerHour", "requestsPerSecond", "claims", "jwks", "jwksUri":
		case "clientId":
			m.ClientID, ok = strictjson.String(raw)
		case "secret":
			m.Secret, ok = strictjson.String(raw)
			ok = ok && m.Secret != ""
		case "created":
			m.Created, err = parseTimeMember(name, raw)
		case "enabled":
			ok = !strictjson.Null(raw) && json.Unmarshal(raw, &enabled) == nil
			m.Named = append(m.Named, name)
		case "secrets":
			m.Hashes, err = parseSecretHashes(raw)
		default:
			return m, &issuer.InputError{Field: "the line", Problem: "has a member that is not known"}
		}
		if err == nil && !ok {
			err = wrong
		}
		if err != nil {
			return m, err
		}
	}
	slices.Sort(m.Named)
	m.Disabled = !enabled
	return m, nil
}

func parseTimeMember(name string, raw json.RawMessage) (time.Time, error) {
	text, ok := strictjson.String(raw)
	if !ok {
		return time.Time{}, &issuer.InputError{Field: name, Problem: "is not a string"}
	}
	t, err := ParseTime(text)
	if err != nil {
		return time.Time{}, &issuer.InputError{Field: name, Problem: err.Error()}
	}
	return t, nil
}

// parseSecretHashes reads an array of hashes: texts, or objects that say more.
func parseSecretHashes(raw json.RawMessage) (hashes []issuer.SecretHash, err error) {
	var all []json.RawMessage
	if strictjson.Null(raw) || json.Unmarshal(raw, &all) != nil {
		return nil, &issuer.InputError{Field: "secrets", Problem: "is not an array"}
	}
	for _, one := range all {
		var h issuer.SecretHash
		if text, ok := strictjson.String(one); ok {
			h.Hash = text
		} else if h, err = parseSecretHash(one); err != nil {
			return nil, err
		}
		hashes = append(hashes, h)
	}
	return hashes, nil
}

func parseSecretHash(raw json.RawMessage) (h issuer.SecretHash, err error) {
	members, err := strictjson.Object(raw)
	if err != nil {
		return h, &issuer.InputError{Field: "secrets", Problem: "holds what is neither a hash nor an object"}
	}
	for name, value := range members {
		ok := true
		switch name {
		case "hash":
			h.Hash, ok = strictjson.String(value)
		case "hint":
			h.Hint, ok = strictjson.String(value)
		case "created":
			h.Created, err = parseTimeMember("secrets.created", value)
		case "expires":
			h.Expires, err = parseTimeMember("secrets.expires", value)
		default:
			ok = false
		}
		if err == nil && !ok {
			err = &issuer.InputError{Field: "secrets", Problem: "holds an object that has more, or other, than hash, hint, created and expires"}
		}
		if err != nil {
			return h, err
		}
	}
	return h, nil
}

// ExportLines writes each credential that has not ended as a line of JSON.
func ExportLines(ctx context.Context, iss *issuer.Issuer, w io.Writer) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	return iss.Export(ctx, func(c *issuer.Credential, hashes []issuer.SecretHash) error {
		return encoder.Encode(portable(c, hashes))
	})
}

func portable(c *issuer.Credential, hashes []issuer.SecretHash) portableCredential {
	p := portableCredential{
		ClientID: c.ClientID, Name: c.Name, Account: c.Account, Created: timestamp(c.Created), Expires: timestampOrNull(c.Expires),
		Scopes: append([]string{}, c.Scopes...), Audiences: c.Audiences, Grantable: c.Grantable,
		TokensPerHour: c.TokensPerHour, PerSecond: c.RequestsPerSecond,
		Claims: c.Claims, Keys: c.Keys, KeysURL: c.KeysURL, Secrets: []portableSecret{},
	}
	if c.TokenLifetime != 0 {
		p.TokenLifetime = duration(c.TokenLifetime)
	}
	if c.Disabled {
		p.Enabled = new(bool)
	}
	for _, h := range hashes {
		created := timestamp(h.Created)
		p.Secrets = append(p.Secrets, portableSecret{Hash: h.Hash, Hint: h.Hint, Created: &created, Expires: timestampOrNull(h.Expires)})
	}
	return p
}

func (a AdminAPI) serveImport(w http.ResponseWriter, r *http.Request) error {
	iss, err := a.issuer(r)
	if err != nil {
		return err
	}
	if r.Method != http.MethodPost {
		return adminMethodNotAllowed(w, http.MethodPost)
	}
	try, err := strconv.ParseBool(cmp.Or(r.URL.Query().Get("dryRun"), "false"))
	if err != nil {
		return adminError(&issuer.InputError{Field: "dryRun", Problem: "is neither true nor false"})
	}
	w.Header().Set("Content-Type", "application/jsonl")
	control := http.NewResponseController(w)
	if err := control.EnableFullDuplex(); err != nil { // the report begins while lines still come
		return adminError(err)
	}
	encoder, ctx := json.NewEncoder(w), r.Context()
	return ImportLines(ctx, iss, r.Body, try, func(line ImportedLine) error {
		if line.Error == "" && !try {
			iss.Record(ctx, a.byCommand(issuer.Change{Action: issuer.CredentialImported, ClientID: line.ClientID}))
		}
		if err := encoder.Encode(line); err != nil {
			return err
		}
		return control.Flush()
	})
}

func (a AdminAPI) serveExport(w http.ResponseWriter, r *http.Request) error {
	iss, err := a.issuer(r)
	if err != nil {
		return err
	}
	if r.Method != http.MethodGet {
		return adminMethodNotAllowed(w, http.MethodGet)
	}
	w.Header().Set("Content-Type", "application/jsonl")
	w.Header().Set("Cache-Control", "no-store")
	adminLog().Info("credentials exported", zap.String("remote", r.RemoteAddr))
	if err := ExportLines(r.Context(), iss, w); err != nil {
		adminLog().Error("export failed", zap.Error(err))
		panic(http.ErrAbortHandler) // so that the client sees that there should be more
	}
	return nil
}
