import assert from 'node:assert/strict'
import * as oauth from 'oauth4webapi'
import { API, CLIENT_ID, CLIENT_SECRET, ISSUER, apiAccepts, apiRefuses, withOtherClaims } from './expect.mjs'

const http = { [oauth.allowInsecureRequests]: true }
const issuer = new URL(ISSUER)
const as = await oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, { algorithm: 'oauth2', ...http }))
const client = { client_id: CLIENT_ID }

function validate(token, audience = ISSUER) {
	const request = new Request(API, { headers: { Authorization: `Bearer ${token}` } })
	return oauth.validateJwtAccessToken(as, request, audience, http)
}

for (const method of [oauth.ClientSecretBasic, oauth.ClientSecretPost]) {
	const auth = method(CLIENT_SECRET)
	const grant = async (auth) =>
		oauth.processClientCredentialsResponse(as, client, await oauth.clientCredentialsGrantRequest(as, client, auth, { scope: 'items:read' }, http))
	const introspect = async (token) =>
		oauth.processIntrospectionResponse(as, client, await oauth.introspectionRequest(as, client, auth, token, http))

	const answer = await grant(auth)
	assert.equal(answer.token_type, 'bearer')
	assert.equal(answer.expires_in, 3600)
	assert.equal(answer.scope, 'items:read')
	const token = answer.access_token
	await apiAccepts(token)

	const claims = await validate(token)
	assert.equal(claims.client_id, CLIENT_ID)
	assert.equal(claims.scope, 'items:read')
	await assert.rejects(validate(token, 'https://other.example'), { code: oauth.JWT_CLAIM_COMPARISON })
	await assert.rejects(validate(withOtherClaims(token, { scope: 'admin' })), /signature/)

	const active = await introspect(token)
	assert.equal(active.active, true)
	assert.equal(active.client_id, CLIENT_ID)
	await oauth.processRevocationResponse(await oauth.revocationRequest(as, client, auth, token, http))
	assert.deepEqual(await introspect(token), { active: false })
	await apiRefuses(token)

	// The library reads the challenge where there is one, before the body.
	await assert.rejects(grant(method('wrong')), (error) =>
		error instanceof oauth.WWWAuthenticateChallengeError
			? error.status === 401 && error.cause[0].scheme === 'basic'
			: error.error === 'invalid_client')
}
