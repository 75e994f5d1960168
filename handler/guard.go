package handler

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// Rules are what a request must fulfil to be let through.
type Rules struct {
	// The scopes that the token must carry, all of them. Default: none; every
	// valid token passes.
	Scopes []string `json:"scopes,omitempty"`

	// Lets a token pass that carries any of the scopes. Default: `false`; all of
	// them are needed.
	Any bool `json:"any,omitempty"`

	// The audience that the token must have been issued for. Placeholders are
	// replaced. Default: the audience of the `client_credentials` app.
	Audience string `json:"audience,omitempty"`

	// The protection space that a refusal names in `WWW-Authenticate`.
	// Default: the issuer.
	Realm string `json:"realm,omitempty"`
}

// guard holds the rules against requests.
type guard struct {
	Rules
	app    *issuer.App
	logger *zap.Logger

	// metadata is where the resource is described, or nil.
	metadata *url.URL
}

// refusal is why a request is not let through, and how it is told.
type refusal struct {
	status int
	// code and description go into the challenge, RFC 6750 section 3. Without
	// a code, the client has simply shown no token.
	code, description string
	scope             string // what is needed
	reason            string // for the log: from a small set
	clientID          string // whose token it is, where that counts elsewhere
	err               error  // where the server cannot tell, or a limit is reached
}

// ValidateRules returns an error where the rules could let nobody through, or
// could not be told to a client.
func ValidateRules(r Rules) error {
	for _, scope := range r.Scopes {
		if !issuer.ValidScope(scope) {
			return fmt.Errorf("%q is no scope: RFC 6749 allows visible ASCII characters without quotes and backslash", scope)
		}
	}
	if r.Any && len(r.Scopes) == 0 {
		return errors.New("any needs scopes to choose from: name some, or leave it out")
	}
	for _, c := range r.Realm {
		if c < 0x20 || c > 0x7E || c == '"' || c == '\\' {
			return errors.New("realm takes visible ASCII characters and spaces, without quotes and backslash")
		}
	}
	return nil
}

func newGuard(ctx caddy.Context, rules Rules) (*guard, error) {
	app, err := configuredApp(ctx)
	if err != nil {
		return nil, err
	}
	if err := ValidateRules(rules); err != nil {
		return nil, err
	}
	if err := registerMetrics(ctx); err != nil {
		return nil, err
	}
	policy := app.Policy()
	if rules.Audience == "" {
		rules.Audience = policy.Audience
	} else if rules.Audience, err = caddy.NewReplacer().ReplaceOrErr(rules.Audience, true, true); err != nil {
		return nil, fmt.Errorf("audience: %w", err)
	} else if !issuer.ValidAudience(rules.Audience) { // no token could be for it
		return nil, errors.New("audience takes visible ASCII characters, without spaces and fragment")
	}
	if rules.Realm == "" {
		rules.Realm = policy.Issuer
	}
	app.Protect(rules.Audience, rules.Scopes)
	return &guard{Rules: rules, app: app, logger: ctx.Logger(), metadata: resourceMetadataURL(rules.Audience)}, nil
}

func configuredApp(ctx caddy.Context) (*issuer.App, error) {
	app, err := ctx.AppIfConfigured("client_credentials")
	if errors.Is(err, caddy.ErrNotConfigured) {
		return nil, errors.New("the client_credentials app is not configured: " +
			"add the global option 'client_credentials { issuer https://… }'")
	}
	if err != nil {
		return nil, err
	}
	return app.(*issuer.App), nil
}

// admit returns who sends the request, if it may pass; nil and no refusal where
// it brings no token at all.
func (g *guard) admit(r cleaned) (*admission, *refusal) {
	a, ref := g.judge(r)
	r.leave(a)
	return a, ref
}

func (g *guard) judge(r cleaned) (*admission, *refusal) {
	a := r.admission
	if a == nil || a.over {
		header := r.Header
		if a != nil { // a guard has taken it out of the header
			header = http.Header{"Authorization": {a.fields[tokenField]}}
		}
		var ref *refusal
		if a, ref = g.authenticate(r.Request, header); a == nil || ref != nil {
			return nil, ref
		}
	}
	if !a.Token.For(g.Audience) {
		return nil, &refusal{
			status: http.StatusUnauthorized, code: "invalid_token",
			description: "the token is for another audience", reason: "wrong audience", clientID: a.Token.ClientID,
		}
	}
	if !g.satisfied(&a.Token) {
		return nil, insufficientScope(a.Token.ClientID, g.Scopes...)
	}
	return a, nil
}

// satisfied reports whether the token's scopes are those that the rules ask for.
func (r *Rules) satisfied(t *issuer.Token) bool {
	for _, scope := range r.Scopes {
		if t.HasScope(scope) == r.Any {
			return r.Any
		}
	}
	return !r.Any
}

func (g *guard) authenticate(r *http.Request, header http.Header) (*admission, *refusal) {
	authorization, token, err := bearerToken(header)
	if err != nil {
		return nil, unreadable(err)
	}
	if token == "" {
		return nil, nil
	}
	iss, err := g.app.Open()
	if err != nil {
		return nil, cannotTell(err)
	}
	access, err := iss.Verify(r.Context(), token)
	if err == nil {
		return &admission{Access: access, fields: [...]string{tokenField: authorization}}, nil
	}
	switch ref := refusalOf(err); {
	case r.Context().Err() != nil:
		return nil, clientGone()
	case ref.err == nil && !token68(token): // asked late: a token that counts is one
		return nil, unreadable(errMalformedBearer)
	default:
		return nil, ref
	}
}

// refusalOf is that of a token that does not count, or of which the server
// cannot tell.
func refusalOf(err error) *refusal {
	if refused, ok := errors.AsType[*issuer.Refusal](err); ok {
		return invalidToken(refused.Reason)
	}
	return cannotTell(err)
}

func unreadable(err error) *refusal {
	return &refusal{
		status: http.StatusBadRequest, code: "invalid_request",
		description: err.Error(), reason: err.Error(),
	}
}

func noToken() *refusal {
	return &refusal{status: http.StatusUnauthorized, reason: "no token"}
}

func invalidToken(reason string) *refusal {
	return &refusal{
		status: http.StatusUnauthorized, code: "invalid_token",
		description: "the token is invalid, expired or revoked", reason: reason,
	}
}

func insufficientScope(clientID string, needed ...string) *refusal {
	return &refusal{
		status: http.StatusForbidden, code: "insufficient_scope",
		description: "the token lacks a scope that this needs",
		scope:       strings.Join(needed, " "), reason: "insufficient scope", clientID: clientID,
	}
}

func cannotTell(err error) *refusal {
	return &refusal{status: http.StatusServiceUnavailable, reason: "cannot tell", err: err}
}

// clientGone is what nobody reads any more, with the status that Caddy's own
// handlers have for it.
func clientGone() *refusal {
	return &refusal{status: statusClientGone, reason: reasonClientGone}
}

const (
	statusClientGone = 499
	reasonClientGone = "client went away"
)

// isClientGone reports whether the error is that nobody waits for the answer.
func isClientGone(r *http.Request, err error) bool {
	return r.Context().Err() != nil && errors.Is(err, r.Context().Err())
}

// retryAfter is how many seconds a client is told to wait where the server
// cannot tell now.
const retryAfter = "5"

// challenge writes the header fields of a refusal, logs it and counts it.
func (g *guard) challenge(w http.ResponseWriter, r *http.Request, ref *refusal) {
	w.Header().Set("Cache-Control", "no-store")
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Set("http.auth.bearer.error", ref.reason)
	}
	noteRefusal(r, ref.reason, ref.clientID)
	if ref.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", retryAfter)
		countRequest("failed", ref.reason)
		logFailure(g.logger, "cannot verify token", ref.err)
		return
	}
	countRequest("refused", ref.reason)
	if limited, ok := errors.AsType[*issuer.LimitError](ref.err); ok {
		writeLimit(w.Header(), limited)
		g.logRefusal(zap.DebugLevel, "request refused", r, ref) // a flood must not become one of log entries
		return
	}
	params := []string{`realm="` + g.Realm + `"`}
	if ref.code != "" {
		params = append(params, `error="`+ref.code+`"`, `error_description="`+ref.description+`"`)
	}
	if ref.scope != "" {
		params = append(params, `scope="`+ref.scope+`"`)
	}
	if g.metadata != nil && isHost(r, g.metadata) { // RFC 9728 section 5.1
		params = append(params, `resource_metadata="`+g.metadata.String()+`"`)
	}
	w.Header().Set("WWW-Authenticate", "Bearer "+strings.Join(params, ", "))

	level := zap.InfoLevel
	if ref.code == "" {
		level = zap.DebugLevel // how every dance with a challenge begins
	}
	g.logRefusal(level, "request refused", r, ref)
}

// report counts and logs what the guard would have done: ref is nil where it
// would have let the request pass.
func (g *guard) report(r *http.Request, ref *refusal) {
	if ref == nil {
		requestsAdmitted.Inc()
		return
	}
	countRequest("reported", ref.reason)
	if ref.err != nil {
		logFailure(g.logger, "cannot verify token", ref.err)
	}
	g.logRefusal(zap.InfoLevel, "request would be refused", r, ref)
}

func (g *guard) logRefusal(level zapcore.Level, message string, r *http.Request, ref *refusal) {
	if entry := g.logger.Check(level, message); entry != nil {
		client := zap.Skip()
		if ref.clientID != "" {
			client = zap.String("client_id", ref.clientID)
		}
		entry.Write(zap.String("reason", ref.reason), zap.Int("status", ref.status), client,
			zap.String("method", r.Method), zap.String("path", r.URL.Path), zap.String("remote_ip", clientIP(r)))
	}
}

// accept counts and logs a request that passes, and tells Caddy whose it is:
// in the placeholders, and so in the access log.
func (g *guard) accept(r cleaned, a *admission) {
	requestsAdmitted.Inc()
	setPlaceholders(r, a)
	if r.vars[traceVar] != nil { // to look for the span itself takes longer
		traceClient(r.Request, a.Token.ClientID)
	}
	if entry := g.logger.Check(zapcore.DebugLevel, "request admitted"); entry != nil {
		entry.Write(zap.String("client_id", a.Token.ClientID), zap.String("jti", a.Token.ID))
	}
}

// noteCut counts and logs a request that was ended while it was answered.
func (g *guard) noteCut(r *http.Request, a *admission) {
	var reason string
	switch a.stream.writer.phase.Load() {
	case cutExpired:
		reason = "expired"
	case cutRevoked:
		reason = "revoked"
	default:
		return
	}
	requestsCut.WithLabelValues(reason).Inc()
	g.logger.Info("request cut", zap.String("reason", reason), zap.String("client_id", a.Token.ClientID),
		zap.String("jti", a.Token.ID), zap.String("method", r.Method), zap.String("path", r.URL.Path),
		zap.String("remote_ip", clientIP(r)))
}

// clientIP is the client's address as Caddy sees it, trusted proxies respected.
func clientIP(r *http.Request) string {
	ip, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	return ip
}
