from oauthlib.oauth2 import BackendApplicationClient, InvalidClientError
from requests.auth import HTTPBasicAuth
from requests_oauthlib import OAuth2Session

from expect import API, CLIENT_ID, CLIENT_SECRET, TOKEN_URL, api_accepts, equal

for name, ways in {
    "default": lambda secret: {"client_id": CLIENT_ID, "client_secret": secret},
    "body": lambda secret: {"client_id": CLIENT_ID, "client_secret": secret, "include_client_id": True},
    "basic": lambda secret: {"auth": HTTPBasicAuth(CLIENT_ID, secret)},
    "basic, and the id in the body": lambda secret: {"auth": HTTPBasicAuth(CLIENT_ID, secret), "include_client_id": True},
}.items():
    for scope in None, ["items:read"]:
        client = OAuth2Session(client=BackendApplicationClient(client_id=CLIENT_ID, scope=scope))
        token = client.fetch_token(TOKEN_URL, **ways(CLIENT_SECRET))
        equal(set(token.scopes), {"items:read"} if scope else {"items:read", "items:write"}, f"scopes ({name})")
        equal(token["token_type"], "Bearer", f"token_type ({name})")
        api_accepts(client.get(API))
    try:
        client.fetch_token(TOKEN_URL, **ways("wrong"))
        equal("a token", "an error", f"a wrong secret ({name})")
    except InvalidClientError as error:
        equal(error.status_code, 401, f"a wrong secret ({name})")
