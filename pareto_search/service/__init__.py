"""The HTTP service: launch, watch, compare, select and deploy, in a browser or over HTTP."""
