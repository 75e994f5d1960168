import assert from 'node:assert/strict'
import { ClientCredentials } from 'simple-oauth2'
import { CLIENT_ID, CLIENT_SECRET, TOKEN_URL, apiAccepts, apiRefuses } from './expect.mjs'

const url = new URL(TOKEN_URL)
const auth = { tokenHost: url.origin, tokenPath: url.pathname, revokePath: url.pathname.replace(/token$/, 'revoke') }

for (const options of [
	{ authorizationMethod: 'header', credentialsEncodingMode: 'strict' },
	{ authorizationMethod: 'header', credentialsEncodingMode: 'loose' },
	{ authorizationMethod: 'body' },
]) {
	const client = new ClientCredentials({ client: { id: CLIENT_ID, secret: CLIENT_SECRET }, auth, options })
	const accessToken = await client.getToken({ scope: ['items:read', 'items:write'] })
	assert.equal(accessToken.token.scope, 'items:read items:write')
	assert.equal(accessToken.expired(), false)
	const token = accessToken.token.access_token
	await apiAccepts(token)
	await accessToken.revoke('access_token')
	await apiRefuses(token)

	const wrong = new ClientCredentials({ client: { id: CLIENT_ID, secret: 'wrong' }, auth, options })
	await assert.rejects(wrong.getToken({}), (error) => error.output.statusCode === 401 && error.data.payload.error === 'invalid_client')
}
