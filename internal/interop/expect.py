import os
import sys

import requests

TOKEN_URL = os.environ["TOKEN_URL"]
INTROSPECT_URL = TOKEN_URL.removesuffix("token") + "introspect"
REVOKE_URL = TOKEN_URL.removesuffix("token") + "revoke"
API = os.environ["API"]
CLIENT_ID = os.environ["CLIENT_ID"]
CLIENT_SECRET = os.environ["CLIENT_SECRET"]


def equal(got, want, what):
    if got != want:
        sys.exit(f"{what}: {got!r}, want {want!r}")


def api_accepts(answer):
    equal((answer.status_code, answer.text), (200, "hello " + CLIENT_ID), "the API, called with a good token")


def api_refuses(token):
    answer = requests.get(API, headers={"Authorization": "Bearer " + token})
    equal(answer.status_code, 401, "the API, called with a bad token")
