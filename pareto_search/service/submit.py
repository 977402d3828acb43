"""A search on a service, submitted from a command line."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

from pareto_search.errors import ConfigError, RunError
from pareto_search.service.refusal import reason


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
        raise ConfigError(reason(error, "error", "expected a pareto-search service there")) from None
    except (OSError, ValueError, HTTPException) as error:
        said = " ".join(str(getattr(error, "reason", error)).split())  # which may have lines
        raise RunError(f"no service answers at {server} ({said}); start one with 'pareto-search serve'") from None
    if not isinstance(found, dict) or "id" not in found:
        raise RunError(f"what answers at {server} is no pareto-search service; give the address that it printed")
    return found
