import assert from 'node:assert/strict'
import { createServer } from 'node:http'
import { Client } from '@modelcontextprotocol/sdk/client/index.js'
import { auth, discoverAuthorizationServerMetadata, discoverOAuthProtectedResourceMetadata, extractWWWAuthenticateParams } from '@modelcontextprotocol/sdk/client/auth.js'
import { ClientCredentialsProvider } from '@modelcontextprotocol/sdk/client/auth-extensions.js'
import { StreamableHTTPClientTransport } from '@modelcontextprotocol/sdk/client/streamableHttp.js'
import { McpServer } from '@modelcontextprotocol/sdk/server/mcp.js'
import { StreamableHTTPServerTransport } from '@modelcontextprotocol/sdk/server/streamableHttp.js'
import { API, CLIENT_ID, CLIENT_SECRET, ISSUER, apiAccepts } from './expect.mjs'

const provider = (clientSecret = CLIENT_SECRET) =>
	new ClientCredentialsProvider({ clientId: CLIENT_ID, clientSecret, expectedIssuer: ISSUER, scope: 'items:read' })

// With the URL that a refusal names, and with nothing but the API's own.
const { resourceMetadataUrl } = extractWWWAuthenticateParams(await fetch(API))
assert.ok(resourceMetadataUrl, 'the refusal names the metadata of the resource')
for (const options of [{ resourceMetadataUrl }, {}]) {
	const resource = await discoverOAuthProtectedResourceMetadata(API, options)
	assert.equal(resource.resource, ISSUER)
	assert.deepEqual(resource.authorization_servers, [ISSUER])
	const server = await discoverAuthorizationServerMetadata(resource.authorization_servers[0])
	assert.equal(server.issuer, ISSUER)
	assert.deepEqual(server.grant_types_supported, ['client_credentials'])

	const authorized = provider()
	assert.equal(await auth(authorized, { serverUrl: API, ...options }), 'AUTHORIZED')
	assert.equal(authorized.tokens().scope, 'items:read')
	await apiAccepts(authorized.tokens().access_token)
}
await assert.rejects(auth(provider('wrong'), { serverUrl: API }), { errorCode: 'invalid_client' })

// A whole session: the client is refused, finds the way to a token by itself,
// and calls a tool of a server behind the guard.
const upstream = createServer(async (req, res) => {
	const server = new McpServer({ name: 'upstream', version: '1' })
	server.registerTool('caller', {}, () => ({ content: [{ type: 'text', text: req.headers['x-client-id'] }] }))
	const transport = new StreamableHTTPServerTransport({ sessionIdGenerator: undefined })
	await server.connect(transport)
	await transport.handleRequest(req, res)
})
await new Promise((resolve) => upstream.listen(process.env.MCP_PORT, '127.0.0.1', resolve))
const client = new Client({ name: 'interop', version: '1' })
await client.connect(new StreamableHTTPClientTransport(new URL('/mcp', API), { authProvider: provider() }))
const { content } = await client.callTool({ name: 'caller' })
assert.equal(content[0].text, CLIENT_ID)
await client.close()
upstream.closeAllConnections()
upstream.close()
