from authlib.integrations.base_client import OAuthError
from authlib.integrations.requests_client import OAuth2Session

from expect import API, CLIENT_ID, CLIENT_SECRET, INTROSPECT_URL, REVOKE_URL, TOKEN_URL, api_accepts, api_refuses, equal


def session(method, secret=CLIENT_SECRET):
    return OAuth2Session(
        CLIENT_ID,
        secret,
        scope="items:read",
        token_endpoint_auth_method=method,
        revocation_endpoint_auth_method=method,
        token_endpoint=TOKEN_URL,
    )


for method in "client_secret_basic", "client_secret_post":
    client = session(method)
    token = client.fetch_token(TOKEN_URL, grant_type="client_credentials")
    equal(token["token_type"], "Bearer", "token_type")
    equal(token["scope"], "items:read", "scope")
    equal(token.is_expired(), False, "expired")
    api_accepts(client.get(API))

    answer = client.introspect_token(INTROSPECT_URL, token=token["access_token"], token_type_hint="access_token")
    equal(answer.json()["active"], True, "introspection")
    answer = client.revoke_token(REVOKE_URL, token=token["access_token"], token_type_hint="access_token")
    equal(answer.status_code, 200, "revocation")
    answer = client.introspect_token(INTROSPECT_URL, token=token["access_token"])
    equal(answer.json(), {"active": False}, "introspection after the revocation")
    api_refuses(token["access_token"])

    try:
        session(method, "wrong").fetch_token(TOKEN_URL, grant_type="client_credentials")
        equal("a token", "an error", "a wrong secret")
    except OAuthError as error:
        equal(error.error, "invalid_client", "a wrong secret")
