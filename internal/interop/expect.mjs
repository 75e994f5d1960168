import assert from 'node:assert/strict'

export const { ISSUER, TOKEN_URL, API, CLIENT_ID, CLIENT_SECRET, MANAGER } = process.env

export async function apiAccepts(token) {
	const answer = await fetch(API, { headers: { Authorization: `Bearer ${token}` } })
	assert.equal(answer.status, 200, 'status of the API, called with a good token')
	assert.equal(await answer.text(), `hello ${CLIENT_ID}`, 'what the API says to the client')
}

export async function apiRefuses(token) {
	const answer = await fetch(API, { headers: { Authorization: `Bearer ${token}` } })
	assert.equal(answer.status, 401, 'status of the API, called with a bad token')
	assert.match(answer.headers.get('WWW-Authenticate'), /^Bearer .*error="invalid_token"/)
}

// withOtherClaims returns the token with some claims changed, and the signature
// as it was.
export function withOtherClaims(token, changes) {
	const [header, claims, signature] = token.split('.')
	const changed = { ...JSON.parse(Buffer.from(claims, 'base64url')), ...changes }
	return [header, Buffer.from(JSON.stringify(changed)).toString('base64url'), signature].join('.')
}

export async function untilExpired(token) {
	const { exp } = JSON.parse(Buffer.from(token.split('.')[1], 'base64url'))
	await new Promise((resolve) => setTimeout(resolve, exp * 1000 - Date.now() + 100))
}
