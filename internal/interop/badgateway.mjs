import assert from 'node:assert/strict'
import { OAuth2Client, OAuth2Fetch } from '@badgateway/oauth2-client'
import { API, CLIENT_ID, CLIENT_SECRET, ISSUER, apiRefuses } from './expect.mjs'

for (const authenticationMethod of [undefined, 'client_secret_basic', 'client_secret_basic_interop', 'client_secret_post']) {
	const settings = { server: ISSUER, clientId: CLIENT_ID, clientSecret: CLIENT_SECRET, authenticationMethod }
	const client = new OAuth2Client(settings)
	const token = await client.clientCredentials({ scope: ['items:read'], resource: [ISSUER] })
	assert.deepEqual(token.scope, ['items:read'])
	const wrapper = new OAuth2Fetch({ client, getNewToken: () => token, scheduleRefresh: false })
	const called = await wrapper.fetch(API)
	assert.equal(await called.text(), `hello ${CLIENT_ID}`, 'what the API says to the client')

	const introspection = await client.introspect(token)
	assert.equal(introspection.active, true)
	assert.equal(introspection.client_id, CLIENT_ID)
	await client.revoke(token)
	assert.deepEqual(await client.introspect(token), { active: false })
	await apiRefuses(token.accessToken)

	const wrong = new OAuth2Client({ ...settings, clientSecret: 'wrong' })
	await assert.rejects(wrong.clientCredentials(), { httpCode: 401, oauth2Code: 'invalid_client' })
}
