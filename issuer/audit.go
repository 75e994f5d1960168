package issuer

import (
	"context"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"
)

// Action is what was done to a credential, a token, a key or the whole store.
type Action string

// The actions that the audit log knows.
const (
	CredentialCreated  Action = "credential.created"
	CredentialImported Action = "credential.imported" // with the secrets of another server
	CredentialChanged  Action = "credential.changed"
	CredentialRevoked  Action = "credential.revoked"
	SecretRotated      Action = "secret.rotated" // another one works, and the earlier ones end
	SecretDeleted      Action = "secret.deleted"
	TokenRevoked       Action = "token.revoked"

	SigningKeyCreated Action = "key.created" // it is published; the first one of a store signs at once
	SigningKeyRotated Action = "key.rotated" // it signs from now on, instead of another
	SigningKeyRevoked Action = "key.revoked"

	MasterKeyReplaced Action = "master_key.replaced"
	MasterKeyImported Action = "master_key.imported"
	StoreRestored     Action = "store.restored" // from a backup
	StoreMended       Action = "store.mended"   // with what a loss has left of it
)

// Who makes changes, beside clients, and from where, beside addresses.
const (
	ByCommand       = "command line"
	ByConfiguration = "configuration"
	ByServer        = "server"

	FromAdmin   = "admin endpoint"
	FromOffline = "offline command"
)

// Change is one that the store has durably taken.
type Change struct {
	Action Action

	// What was changed, as far as it applies. The account is looked up where only
	// the client is given.
	ClientID string
	Account  string
	Scope    string // of a new credential, or one that is declared
	Members  string // of the credential that were changed, separated by spaces
	SecretID string
	TokenID  string
	KeyID    string

	By   string // a client id, or one of the constants
	From string // an IP address, or one of the constants; empty for the server itself
}

// Record tells of a change that the store has durably taken: to the audit log, to
// the metrics, and as an event.
func (i *Issuer) Record(ctx context.Context, c Change) { i.registry.record(ctx, c) }

// Record does the same, also where the store is not open any more, or never was.
func (a *App) Record(ctx context.Context, c Change) {
	if iss := a.issuer.Load(); iss != nil {
		iss.Record(ctx, c)
		return
	}
	c.log(a.audit)
}

func (r *registry) record(ctx context.Context, c Change) {
	if c.Account == "" && c.ClientID != "" {
		if known, err := r.credential(context.WithoutCancel(ctx), c.ClientID); err == nil {
			c.Account = known.Account
		}
	}
	changesTotal.WithLabelValues(string(c.Action)).Inc()
	audit := caddy.Log().Named(auditLog) // of a store that nobody has configured
	if a := r.speaker(); a != nil {
		audit = a.audit
	}
	c.log(audit)
	data := make(map[string]any)
	for _, d := range c.details() {
		data[d.name] = d.value
	}
	r.tell(strings.ReplaceAll(string(c.Action), ".", "_"), data)
}

const auditLog = "client_credentials.audit"

func (c *Change) log(audit *zap.Logger) {
	fields := []zap.Field{zap.String("action", string(c.Action))}
	for _, f := range c.details() {
		fields = append(fields, zap.String(f.name, f.value))
	}
	audit.Info("change", fields...)
}

// detail is something that is known of a change.
type detail struct{ name, value string }

func (c *Change) details() (known []detail) {
	for _, d := range []detail{
		{"client_id", c.ClientID},
		{"account", c.Account},
		{"scope", c.Scope},
		{"members", c.Members},
		{"secret_id", c.SecretID},
		{"jti", c.TokenID},
		{"kid", c.KeyID},
		{"by", c.By},
		{"from", c.From},
	} {
		if d.value != "" {
			known = append(known, d)
		}
	}
	return known
}

// recordKeys records what has become of the signing keys.
func (r *registry) recordKeys(ctx context.Context, before, after keyRecords, signing string, p keyPolicy) {
	by := ByServer
	if p.given != nil {
		by = ByConfiguration
	}
	for id := range after {
		if _, known := before[id]; !known {
			r.record(ctx, Change{Action: SigningKeyCreated, KeyID: id, By: by})
		}
	}
	was, known := before[signing]
	if len(before) > 0 && (!known || was.Next || !was.Retired.IsZero()) {
		r.record(ctx, Change{Action: SigningKeyRotated, KeyID: signing, By: by})
	}
}
