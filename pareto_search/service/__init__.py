"""The HTTP service: launch, watch, compare and select, in a browser or over HTTP."""
