import assert from 'node:assert/strict'
import { createRemoteJWKSet, jwtVerify } from 'jose'
import { CLIENT_ID, ISSUER, untilExpired, withOtherClaims } from './expect.mjs'

const { TOKEN, EXPIRING_TOKEN } = process.env
const metadata = await (await fetch(`${ISSUER}/.well-known/oauth-authorization-server`)).json()
const keys = createRemoteJWKSet(new URL(metadata.jwks_uri))
const rules = { issuer: ISSUER, audience: ISSUER, typ: 'at+jwt', requiredClaims: ['exp', 'iat', 'jti', 'sub', 'client_id', 'scope'] }

const { payload } = await jwtVerify(TOKEN, keys, rules)
assert.equal(payload.client_id, CLIENT_ID)
assert.equal(payload.sub, CLIENT_ID)
assert.equal(payload.scope, 'items:read items:write')

const refused = (token, rules, code) => assert.rejects(jwtVerify(token, keys, rules), { code })
await refused(TOKEN, { ...rules, audience: 'https://other.example' }, 'ERR_JWT_CLAIM_VALIDATION_FAILED')
await refused(TOKEN, { ...rules, issuer: 'https://other.example' }, 'ERR_JWT_CLAIM_VALIDATION_FAILED')
await refused(TOKEN, { ...rules, typ: 'JWT' }, 'ERR_JWT_CLAIM_VALIDATION_FAILED')
await refused(withOtherClaims(TOKEN, { scope: 'admin' }), rules, 'ERR_JWS_SIGNATURE_VERIFICATION_FAILED')
await untilExpired(EXPIRING_TOKEN)
await refused(EXPIRING_TOKEN, rules, 'ERR_JWT_EXPIRED')
