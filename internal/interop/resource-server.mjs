import assert from 'node:assert/strict'
import express from 'express'
import { auth, requiredScopes } from 'express-oauth2-jwt-bearer'
import { CLIENT_ID, ISSUER, untilExpired, withOtherClaims } from './expect.mjs'

const { TOKEN, EXPIRING_TOKEN } = process.env
// strict asks for all that RFC 9068 does.
const rules = { issuerBaseURL: ISSUER, strict: true, clockTolerance: 0 }
const app = express()
app.get('/own', auth({ ...rules, audience: ISSUER }), (req, res) => res.send(req.auth.payload.client_id))
app.get('/read', auth({ ...rules, audience: ISSUER }), requiredScopes('items:read items:write'), (req, res) => res.send('read'))
app.get('/admin', auth({ ...rules, audience: ISSUER }), requiredScopes('admin'), (req, res) => res.send('admin'))
app.get('/other', auth({ ...rules, audience: 'https://other.example' }), (req, res) => res.send('other'))
app.use((error, req, res, next) => res.status(error.status ?? 500).set(error.headers ?? {}).send(error.message))
const server = await new Promise((resolve) => {
	const server = app.listen(0, '127.0.0.1', () => resolve(server))
})

async function expect(path, token, status, text) {
	const answer = await fetch(`http://127.0.0.1:${server.address().port}${path}`, { headers: { Authorization: `Bearer ${token}` } })
	const body = await answer.text()
	assert.equal(answer.status, status, `${path}: ${body}`)
	assert.match(body, text)
}
await expect('/own', TOKEN, 200, new RegExp(`^${CLIENT_ID}$`))
await expect('/read', TOKEN, 200, /^read$/)
await expect('/admin', TOKEN, 403, /scope/i)
await expect('/other', TOKEN, 401, /'aud'/)
await expect('/own', withOtherClaims(TOKEN, { client_id: 'other' }), 401, /signature/)
await expect('/own', TOKEN.replace(/^[^.]*/, Buffer.from('{"alg":"none","typ":"at+jwt"}').toString('base64url')), 401, /alg/i)
await untilExpired(EXPIRING_TOKEN)
await expect('/own', EXPIRING_TOKEN, 401, /exp/)
// The library leaves a connection open where it was refused the OpenID document.
process.exit()
