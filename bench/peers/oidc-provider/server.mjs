// The token endpoint of oidc-provider on its in-memory adapter, for a client
// `client` with the secret `secret`, which it compares as it stands: there is
// no hash. Usage: node server.mjs PORT opaque|ES256

import { generateKeyPairSync } from 'node:crypto';
import Provider from 'oidc-provider';

const [port, token] = process.argv.slice(2);
const issuer = `http://127.0.0.1:${port}`;
const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });

const provider = new Provider(issuer, {
	clients: [{
		client_id: 'client',
		client_secret: 'secret',
		grant_types: ['client_credentials'],
		redirect_uris: [],
		response_types: [],
		token_endpoint_auth_method: 'client_secret_post',
		id_token_signed_response_alg: 'ES256',
	}],
	features: {
		clientCredentials: { enabled: true },
		devInteractions: { enabled: false },
		resourceIndicators: {
			enabled: token !== 'opaque',
			defaultResource: () => issuer,
			getResourceServerInfo: () => ({
				scope: 'items:read',
				accessTokenFormat: 'jwt',
				accessTokenTTL: 3600,
				jwt: { sign: { alg: 'ES256' } },
			}),
		},
	},
	jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), alg: 'ES256', use: 'sig', kid: 'key' }] },
	ttl: { ClientCredentials: 3600 },
});

provider.listen(Number(port), '127.0.0.1');
