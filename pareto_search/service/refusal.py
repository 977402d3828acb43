"""Why somebody who was asked over HTTP has refused."""

import json
import urllib.error
from http.client import HTTPException


def reason(error: urllib.error.HTTPError, key: str, otherwise: str) -> str:
    """What stands under a key of the JSON that came with a refusal; where there is none, its status and this."""
    try:
        return str(json.load(error)[key])
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        return f"the answer is {error.code}, without a reason; {otherwise}"
