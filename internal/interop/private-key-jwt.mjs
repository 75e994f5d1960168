import assert from 'node:assert/strict'
import { exportJWK, generateKeyPair } from 'jose'
import * as oauth from 'oauth4webapi'
import * as client from 'openid-client'
import { API, ISSUER, MANAGER } from './expect.mjs'

const http = { [oauth.allowInsecureRequests]: true }
const issuer = new URL(ISSUER)
const as = await oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, { algorithm: 'oauth2', ...http }))
assert.ok(as.token_endpoint_auth_methods_supported.includes('private_key_jwt'))

async function register(alg) {
	const { publicKey, privateKey } = await generateKeyPair(alg, { extractable: true })
	const jwks = { keys: [{ ...(await exportJWK(publicKey)), kid: alg, alg, use: 'sig' }] }
	const answer = await fetch(`${ISSUER}/api/v0/client-credentials`, {
		method: 'POST',
		headers: { Authorization: `Bearer ${MANAGER}`, 'Content-Type': 'application/json' },
		body: JSON.stringify({ jwks }),
	})
	assert.equal(answer.status, 201, `registering a key of ${alg}`)
	const { clientId } = await answer.json()
	return { clientId, key: { key: privateKey, kid: alg } }
}

async function callWith(token, clientId) {
	const answer = await fetch(API, { headers: { Authorization: `Bearer ${token}` } })
	assert.equal(await answer.text(), `hello ${clientId}`, 'what the API says to the client')
}

for (const alg of ['ES256', 'Ed25519', 'RS256', 'PS256']) {
	const { clientId, key } = await register(alg)
	const self = { client_id: clientId }
	const auth = oauth.PrivateKeyJwt(key)
	const request = await oauth.clientCredentialsGrantRequest(as, self, auth, { scope: 'items:read' }, http)
	const { access_token: token } = await oauth.processClientCredentialsResponse(as, self, request)
	await callWith(token, clientId)
	const introspected = await oauth.introspectionRequest(as, self, auth, token, http)
	assert.equal((await oauth.processIntrospectionResponse(as, self, introspected)).active, true)

	const config = await client.discovery(issuer, clientId, undefined, client.PrivateKeyJwt(key), {
		algorithm: 'oauth2', execute: [client.allowInsecureRequests],
	})
	const answer = await client.clientCredentialsGrant(config, { scope: 'items:read' })
	await callWith(answer.access_token, clientId)
	await client.tokenRevocation(config, answer.access_token)
	assert.equal((await client.tokenIntrospection(config, answer.access_token)).active, false)

	const { key: other } = await register(alg)
	other.kid = key.kid
	await assert.rejects(async () => {
		const refused = await oauth.clientCredentialsGrantRequest(as, self, oauth.PrivateKeyJwt(other), {}, http)
		await oauth.processClientCredentialsResponse(as, self, refused)
	}, (error) => error.status === 401, 'a key of another client')
}
