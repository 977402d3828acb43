"""A search on a service, submitted from a command line."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

from pareto_search.errors import ConfigError, RunError


def submit(config: Mapping[str, Any], server: str) -> dict[str, Any]:
    """Submits a config, with the token that `PARETO_SEARCH_TOKEN` holds; what comes back is the search.

    Raises:
        ConfigError: there is no token, or the service refuses the config.
        RunError: no service answers.
    """
    token = os.environ.get("PARETO_SEARCH_TOKEN", "")
    if not token:
        raise ConfigError(
            "PARETO_SEARCH_TOKEN is not set; expected the service's token, the end of the link it printed"
        )
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    try:
        body = json.dumps(config, default=str).encode()
        request = urllib.request.Request(f"{server.rstrip('/')}/v1/searches", body, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        raise ConfigError(_reason(error)) from None
    except (OSError, ValueError, HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())  # what it says may have lines
        raise RunError(f"no service answers at {server} ({reason}); start one with 'pareto-search serve'") from None
    if not isinstance(found, dict) or "id" not in found:
        raise RunError(f"what answers at {server} is no pareto-search service; give the address that it printed")
    return found


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"])
    except (ValueError, KeyError, TypeError):
        return f"the server refuses with {error.code}; expected a pareto-search service there"
