import assert from 'node:assert/strict'
import * as client from 'openid-client'
import { API, CLIENT_ID, CLIENT_SECRET, ISSUER, apiRefuses } from './expect.mjs'

const discover = (auth) =>
	client.discovery(new URL(ISSUER), CLIENT_ID, undefined, auth, { algorithm: 'oauth2', execute: [client.allowInsecureRequests] })

for (const method of [client.ClientSecretBasic, client.ClientSecretPost]) {
	const config = await discover(method(CLIENT_SECRET))
	assert.equal(config.serverMetadata().issuer, ISSUER)
	const answer = await client.clientCredentialsGrant(config, { scope: 'items:read', resource: ISSUER })
	assert.equal(answer.scope, 'items:read')
	assert.equal(answer.expires_in, 3600) // expiresIn() counts down
	const token = answer.access_token
	const called = await client.fetchProtectedResource(config, token, new URL(API), 'GET')
	assert.equal(await called.text(), `hello ${CLIENT_ID}`, 'what the API says to the client')

	assert.equal((await client.tokenIntrospection(config, token)).active, true)
	await client.tokenRevocation(config, token)
	assert.equal((await client.tokenIntrospection(config, token)).active, false)
	await apiRefuses(token)
	await assert.rejects(client.fetchProtectedResource(config, token, new URL(API), 'GET'), (error) =>
		error.cause[0].scheme === 'bearer' && error.cause[0].parameters.error === 'invalid_token')

	await assert.rejects(client.clientCredentialsGrant(config, { scope: 'other' }), { error: 'invalid_scope' })
}
