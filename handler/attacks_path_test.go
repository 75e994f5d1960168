package handler_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

// oddPaths are texts that one server or another takes for /admin/x or what is
// around it. Caddy's matcher /admin/* does not fit the last six.
var oddPaths = []string{
	"/admin/x", "//admin/x", "/./admin/x", "/a/../admin/x", "/%61dmin/x", "/admin%2fx", "/ADMIN/x", "/%2e/admin/x", "/a/..%2fadmin/x",
	"/admin", "/admin;/x", `/admin\x`, `/\admin/x`, "/admin%00/x", "*",
}

// strangePaths are further ones, of which none may be more open than the plain.
var strangePaths = []string{
	"/admin;a=b/x", "/admin/x;a=b", "/admin%5cx", "/%5cadmin", "/admin%00", "/admin%252e%252e/x", "/admin/%252e/x", "/%c0%ae/admin", "/admin%c0%afx",
	"/admin/.", "/admin/..;/x", "/admin/./x", "/admin/%2e%2e/admin", "/x/..;/admin", "/%2561dmin",
}

func requests(targets []string, methods ...string) (all []string) {
	for _, target := range targets {
		for _, method := range methods {
			all = append(all, method+" "+target)
		}
	}
	return all
}

// pathAttacks are against a site with a guard on all of it.
var pathAttacks = []attack{
	{"F-01 spellings of a path", asks(noToken, requests(oddPaths, "GET", "TRACE", "FOO")...)},
	{"F-01 spellings of the endpoints' paths", asks(noToken, requests([]string{
		"/api/v0", "/api/v0/", "/api/v0/x", "/api/v0//oauth/token", "/api/v0/oauth/token/", "/api/v0/../v0/oauth/tokens", "/api/v0/oauth%2ftokens",
	}, "GET")...)},
	{"F-05 fragments and queries", asks(noToken, requests([]string{"/pub#/../r", "/r?/pub", "/r?/../pub", "/r?path=/pub", "/r#/pub", "/r%3f/pub", "/r%23/pub"}, "GET")...)},
	{"F-06 another path in a header field", asks(
		noToken,
		"GET /r\nX-Forwarded-Uri: /pub", "GET /r\nX-Original-URL: /pub", "GET /r\nX-Rewrite-URL: /pub", "GET /r\nX-Original-Uri: /pub", "GET /r\nX-Forwarded-Prefix: /pub",
		"GET /r\nX-Forwarded-Path: /pub", "DELETE /r\nX-Forwarded-Method: OPTIONS", "GET /r\nX-Forwarded-For: 127.0.0.1", "GET /r\nForwarded: for=127.0.0.1;host=localhost",
	)},
	{"F-07 spellings of the host", asks(
		noToken, "GET /r\nHost: LOCALHOST:{port}", "GET /r\nHost: localhost", "GET /r\nHost: LocalHost:1", "GET /r\nHost: h5.test", "GET /r\nHost: H5.TEST", "GET /r\nHost: h104.TEST:80",
	)},
	{"F-07 a host that no site has", asks(notServed, "GET /r\nHost: localhost.:{port}", "GET /r\nHost: other.test")},
	{"F-08 who asks for the health", asks(
		noToken, "GET /r\nUser-Agent: kube-probe/1.30", "GET /r\nUser-Agent: Ping/1.0", "GET /r\nUser-Agent: ELB-HealthChecker/2.0", "GET /r\nUser-Agent: GoogleHC/1.0", "GET /healthz", "GET /ping",
	)},
	{"F-09 methods", asks(noToken, "HEAD /r", "TRACE /r", "OPTIONS /r", "PRI /r", "get /r", "FOO /r", "PROPFIND /r", "QUERY /r", "PATCH /r\n\nbody")},
	{"F-10 a path that is rewritten in front of the guard", asks(noToken, "GET /alias/x", "GET /pub/alias/x")},
	{"F-10 a path that is rewritten behind the guard", asks(noToken, "GET /late/x", "GET /late/pub")},
	{"F-11 other ways to the upstream", asks(noToken, "GET /strip/x", "GET /handle/x", "GET /route/x", "GET /try/x", "GET /named/x", "GET /intercept/x")},
	{"F-14 a route without a guard of its own", asks(noToken, "GET /open/x")},
	{"F-14 a route with a weaker guard of its own", asks(noToken, "GET /weak/x")},
}

var rawPathAttacks = []attack{
	{"F-01 the whole URL as the target", asksRaw(noToken, "GET http://localhost:{port}/admin/x", "GET HTTP://LOCALHOST:{port}/admin/x")},
	{"F-07 two hosts", asksRaw(malformed, "GET /r\nHost: other.test", "GET /r\nHost: localhost:{port}")},
	// RFC 9112 section 3.2.2: the target's host counts.
	{"F-07 a host in the target and another in the field", asksRaw(notServed, "GET http://other.test/r")},
	{"F-09 CONNECT and the preface of HTTP/2", asksRaw(noToken, "CONNECT localhost:80", "CONNECT /r", "PRI *", "GET *")},
}

// exemptionAttacks are against a site that is guarded but for /pub, and
// asks more of methods that are not known to change nothing.
var exemptionAttacks = []attack{
	{"F-02 spellings of a path that is not exempt", asks(noToken, requests(oddPaths, "GET", "TRACE", "FOO")...)},
	{"F-03 stranger spellings", asks(noToken, requests(strangePaths, "GET")...)},
	{"F-04 ways out of what is exempt", asks(noToken, requests([]string{
		"/pub/../r", "/pub/..%2fr", "/pub/%2e%2e/r", "/pub//../r", "/pub/./../r", "/pub%2f..%2fr", "/pub/x/../../r", "/pub/%2e%2e%2fr", "/pub/.%2e/r", "/pub%2f%2e%2e/r",
		"/public", "/pubx/../r", "/pub/..//r",
	}, "GET")...)},
	{"F-04 what is exempt", func(t *testing.T, k *keyed) {
		for _, path := range []string{"/pub", "/pub/x"} {
			wantStatus(t, k.Do(t, "GET", path, ""), http.StatusOK)
			wantUpstream(t, k.Server)
		}
	}},
	{"F-09 methods under a rule for methods", asks(
		fmt.Sprintf(insufficientScope, "write"),
		"POST /method\nAuthorization: Bearer {T}", "get /method\nAuthorization: Bearer {T}", "FOO /method\nAuthorization: Bearer {T}", "TRACE /method\nAuthorization: Bearer {T}",
	)},
}

// whole guards all of a site that has several ways to its upstream, and more
// hosts than Caddy looks through one by one.
func whole() string {
	var hosts strings.Builder
	for n := range 105 {
		fmt.Fprintf(&hosts, ", http://h%d.test:{{port}}", n)
	}
	return strings.Replace(site(ownKey, "", `client_credentials
rewrite /alias/* /pub
rewrite /pub/alias/* /r
try_files /try/none /pub {path}
handle_path /strip/* {
	reverse_proxy {{upstream}}
}
handle /handle/* {
	reverse_proxy {{upstream}}
}
route /route/* {
	reverse_proxy {{upstream}}
}
route /late/* {
	rewrite * /pub
	reverse_proxy {{upstream}}
}
handle /open/* {
	reverse_proxy {{upstream}}
}
handle /weak/* {
	bearer_auth {
		optional
	}
	reverse_proxy {{upstream}}
}
handle /named/* {
	invoke api
}
handle /intercept/* {
	intercept {
		handle_response {
			reverse_proxy {{upstream}}
		}
	}
	respond 200
}
reverse_proxy {{upstream}}`), "\n{{url}} {", "\n{{url}}"+hosts.String()+" {", 1) + "&(api) {\nreverse_proxy {{upstream}}\n}\n"
}

const exempting = `@private not path /pub /pub/*
client_credentials @private
@changing {
	path /method*
	not method GET HEAD
}
bearer_auth @changing write
reverse_proxy {{upstream}}`

func TestNoPathGetsPastTheGuardThatShouldNot(t *testing.T) {
	k := runKeyed(t, "ES256", "client_credentials")
	k.Run(t, whole())
	bothVersions(t, k.Server, func(t *testing.T) { tryAll(t, k, pathAttacks) })
	tryAll(t, k, rawPathAttacks)
	k.Run(t, site(ownKey, "", exempting))
	bothVersions(t, k.Server, func(t *testing.T) { tryAll(t, k, exemptionAttacks) })
}
