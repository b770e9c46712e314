"""The Hub's OpenID provider: a Space's whole sign-in against loopback, and nobody asks for consent.

Who signs in is `hub.signs_in_as`, the token that their account has. A Space finds it by OPENID_PROVIDER_URL.
"""

import base64
import functools
import json
import re
import secrets
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    from tests.fake_hub import FakeHub

SCOPES = "openid profile read-repos gated-repos contribute-repos jobs"
_KEY_ID = "only"


@functools.cache
def _key() -> "RSAPrivateKey":
    from cryptography.hazmat.primitives.asymmetric import rsa

    return rsa.generate_private_key(65537, 2048)


def space_environment(hub: "FakeHub", space: str, port: int) -> dict[str, str]:
    """What a Space's platform sets, with this Hub for all of the internet."""
    return {
        "SPACE_ID": space,
        "SPACE_HOST": f"127.0.0.1:{port}",
        "SYSTEM": "spaces",
        "OAUTH_CLIENT_ID": "client",
        "OAUTH_CLIENT_SECRET": "a secret of this test",
        "OAUTH_SCOPES": SCOPES,
        "OPENID_PROVIDER_URL": hub.url,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "GRADIO_SERVER_PORT": str(port),
    }


class OpenIdProvider:
    """The routes of the provider; `codes` are given out and not yet exchanged for a token."""

    def __init__(self, hub: "FakeHub") -> None:
        self.hub = hub
        self.codes: dict[str, tuple[str, str | None, str]] = {}

    def routes(self) -> list[Route]:
        return [
            Route("/.well-known/openid-configuration", self.configuration),
            Route("/oauth/authorize", self.authorize),
            Route("/oauth/token", self.token, methods=["POST"]),
            Route("/oauth/userinfo", self.userinfo),
            Route("/oauth/jwks", self.jwks),
        ]

    async def configuration(self, _: Request) -> Response:
        url = self.hub.url
        return JSONResponse(
            {
                "issuer": url,
                "authorization_endpoint": f"{url}/oauth/authorize",
                "token_endpoint": f"{url}/oauth/token",
                "userinfo_endpoint": f"{url}/oauth/userinfo",
                "jwks_uri": f"{url}/oauth/jwks",
                "response_types_supported": ["code"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256"],
            }
        )

    async def authorize(self, request: Request) -> Response:
        asked, code = request.query_params, secrets.token_hex(8)
        self.codes[code] = (self.hub.signs_in_as, asked.get("nonce"), asked["client_id"])
        # A Space is reached by https; here nobody is.
        back = re.sub(r"^https://127\.0\.0\.1", "http://127.0.0.1", asked["redirect_uri"])
        mark = "&" if "?" in back else "?"
        return RedirectResponse(
            back + mark + urlencode({"code": code, "state": asked["state"]}), status_code=302
        )

    async def token(self, request: Request) -> Response:
        form = await request.form()
        token, nonce, client = self.codes.pop(str(form["code"]))
        now = int(time.time())
        claims = {"iss": self.hub.url, "aud": client, "iat": now, "exp": now + 3600, "nonce": nonce}
        claims |= self._claims(token)
        return JSONResponse(
            {
                "access_token": token,
                "token_type": "bearer",
                "expires_in": self.hub.sign_in_seconds,
                "scope": SCOPES,
                "id_token": _signed({k: v for k, v in claims.items() if v is not None}),
            }
        )

    async def userinfo(self, request: Request) -> Response:
        return JSONResponse(self._claims(request.headers["authorization"].removeprefix("Bearer ")))

    async def jwks(self, _: Request) -> Response:
        numbers = _key().public_key().public_numbers()
        key = {"kty": "RSA", "kid": _KEY_ID, "use": "sig", "alg": "RS256"}
        return JSONResponse({"keys": [key | {"n": _number(numbers.n), "e": _number(numbers.e)}]})

    def _claims(self, token: str) -> dict[str, Any]:
        """`sub` is the id that whoami has."""
        name = self.hub.users[token].name
        return {
            "sub": name,
            "name": name.title(),
            "preferred_username": name,
            "profile": f"{self.hub.url}/{name}",
            "picture": f"{self.hub.url}/avatar.png",
        }


def _signed(claims: dict[str, Any]) -> str:
    head = {"alg": "RS256", "kid": _KEY_ID, "typ": "JWT"}
    text = f"{_encoded(json.dumps(head).encode())}.{_encoded(json.dumps(claims).encode())}"
    # Only who signs in needs it: the tests run on GPU machines too.
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    return f"{text}.{_encoded(_key().sign(text.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def _number(value: int) -> str:
    return _encoded(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
