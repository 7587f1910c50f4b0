"""The HTTP API: requests in, answers out; HTTP stops at this door."""
