"""Whether a server's address is the machine's own."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether nobody gets there but from the same machine."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
