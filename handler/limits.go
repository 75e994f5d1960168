package handler

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/clientcredentials/caddy-client-credentials/issuer"
)

// writeLimit writes when there is something of the limit again, in the fields of
// RFC 9110 and of draft-ietf-httpapi-ratelimit-headers-10.
func writeLimit(header http.Header, limited *issuer.LimitError) {
	wait := int64((limited.Wait + time.Second - 1) / time.Second)
	wait = max(1, wait)
	header.Set("Retry-After", strconv.FormatInt(wait, 10))
	header.Set("RateLimit-Policy", fmt.Sprintf(`"%s";q=%d;w=%d`, limited.Limit, limited.Quota, int64(limited.Window/time.Second)))
	header.Set("RateLimit", fmt.Sprintf(`"%s";r=0;t=%d`, limited.Limit, wait))
}

// count counts a request that a guard lets pass, once however many guards it
// meets, and returns a refusal where its credential has none left.
func (a *admission) count() *refusal {
	if a.counted {
		return nil
	}
	a.counted = true
	if err := a.Count(); err != nil {
		return &refusal{status: http.StatusTooManyRequests, reason: "too many requests", err: err}
	}
	return nil
}
