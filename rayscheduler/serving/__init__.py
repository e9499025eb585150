"""What requests touch: HTTP in, an engine's bytes out.

Read in this order: `gateway` (the paths), `openai` (bodies and errors), `keyring` (who may ask what),
`relay` (a request's way to an engine and all that can happen on it), `admin` (what operators ask), `asgi` (the
little of HTTP that they share).
Leases come from `rayscheduler.cluster.holder`, which clients in Python use, too.
"""
