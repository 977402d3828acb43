"""A search on a service, submitted from a command line."""

import json
import os
import secrets
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException, IncompleteRead
from typing import Any

from pareto_search.errors import ConfigError, RunError
from pareto_search.service.refusal import reason

PATIENCE = 60.0
"""Seconds for an answer."""
UNANSWERED = (TimeoutError, ConnectionError, IncompleteRead)
"""What comes after the service may have heard; where it cannot be reached at all, urllib says so in a `URLError`."""


def submit(config: Mapping[str, Any], server: str) -> dict[str, Any]:
    """Submits a config, with the token that `PARETO_SEARCH_TOKEN` holds; what comes back is the search.

    Where no answer comes, it is sent once more under the same key, under which the service makes one search at most.

    Raises:
        ConfigError: there is no token, or the service refuses the config.
        RunError: no service answers.
    """
    token = os.environ.get("PARETO_SEARCH_TOKEN", "")
    if not token:
        raise ConfigError(
            "PARETO_SEARCH_TOKEN is not set; expected the service's token, the end of the link it printed"
        )
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
        "Idempotency-Key": secrets.token_urlsafe(16),
    }
    found = _answer(config, server, headers)
    if not isinstance(found, dict) or "id" not in found:
        raise RunError(f"what answers at {server} is no pareto-search service; give the address that it printed")
    return found


def _answer(config: Mapping[str, Any], server: str, headers: Mapping[str, str], again: bool = False) -> Any:
    try:
        body = json.dumps(config, default=str).encode()
        request = urllib.request.Request(f"{server.rstrip('/')}/v1/searches", body, dict(headers))
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise ConfigError(reason(error, "error", "expected a pareto-search service there")) from None
    except (OSError, ValueError, HTTPException) as error:
        if isinstance(error, UNANSWERED) and not again:
            return _answer(config, server, headers, again=True)
        said = " ".join(str(getattr(error, "reason", error)).split())  # which may have lines
        if again:
            raise RunError(
                f"{server} was reached and has not answered ({said}); it may have the search all the same, so look at "
                "its list before you submit again"
            ) from None
        raise RunError(f"no service answers at {server} ({said}); start one with 'pareto-search serve'") from None
