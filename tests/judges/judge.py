"""Checks captured requests with the Python verifiers of receivers.

Reads one JSON object per line: `scheme`, `headers` (names in lower case), `body` (base64) and `key`.
Answers each with one line: `accepted`, and the value in `read` or the reason in `why`. Also makes CloudEvents,
as publishers do.
"""

import base64
import hashlib
import hmac
import json
import re
import sys
from datetime import datetime
from pathlib import Path

import jsonschema
from cloudevents.core.bindings.http import (
    HTTPMessage,
    from_http_event,
    to_binary_event,
    to_structured_event,
)
from cloudevents.core.v1.event import CloudEvent
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from opentelemetry.trace import format_span_id, format_trace_id, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from standardwebhooks.webhooks import Webhook
from stripe import WebhookSignature
from svix.webhooks import Webhook as Svix

INSTALLED = Path(__file__).parents[2] / "target/judges"


def cloudevents_schema():
    """The JSON Schema of the specification, from the compiled validator of the npm package."""
    source = INSTALLED / "node_modules/cloudevents/dist/schema/v1.js"
    return json.loads(re.search(r'= (\{ "\$schema".*\});\n', source.read_text()).group(1))


def standard(headers, body, key):
    Webhook(key).verify(body, headers)


def ed25519(headers, body, key):
    """A plain ed25519 library, because no Standard Webhooks library supports `v1a`."""
    public = Ed25519PublicKey.from_public_bytes(base64.b64decode(key.removeprefix("whpk_"), validate=True))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    signatures = [part[4:] for part in headers["webhook-signature"].split(" ") if part.startswith("v1a,")]
    assert signatures, "no v1a signature"
    for signature in signatures[:-1]:
        try:
            return public.verify(base64.b64decode(signature, validate=True), signed)
        except InvalidSignature:
            pass  # signed with the other key of a rotation
    public.verify(base64.b64decode(signatures[-1], validate=True), signed)


def stripe(headers, body, key):
    WebhookSignature.verify_header(body.decode(), headers["stripe-signature"], key, tolerance=300)


def github(headers, body, key):
    """The algorithm of GitHub's documentation ("Validating webhook deliveries")."""
    expected = "sha256=" + hmac.new(key.encode(), msg=body, digestmod=hashlib.sha256).hexdigest()
    assert hmac.compare_digest(expected, headers["x-hub-signature-256"]), "the digests differ"


def svix(headers, body, key):
    Svix(key).verify(body, headers)


def custom(headers, body, key):
    """A scheme of this test: HMAC-SHA512 in base64 over `v0:timestamp:body`, one per secret."""
    signed = f"v0:{headers['webhook-timestamp']}:".encode() + body
    digest = hmac.new(key.encode(), msg=signed, digestmod=hashlib.sha512).digest()
    expected = "v0=" + base64.b64encode(digest).decode()
    given = headers["x-acme-signature"].split(", ")
    assert any(hmac.compare_digest(expected, one) for one in given), "the digests differ"


def cloudevent(headers, body, key):
    SCHEMA.validate(json.loads(body))
    event = from_http_event(HTTPMessage(headers=headers, body=body))
    attributes = {name: value for name, value in event.get_attributes().items() if name != "time"}
    return {"attributes": attributes, "data": event.get_data()}


def cloudevents_batch(headers, body, key):
    """The SDK has no batches: each event is read as a structured one."""
    assert headers["content-type"] == "application/cloudevents-batch+json", "not a batch"
    one = {"content-type": "application/cloudevents+json"}
    return [cloudevent(one, json.dumps(event).encode(), key) for event in json.loads(body)]


def cloudevent_schema(headers, body, key):
    SCHEMA.validate(json.loads(body))


def trace(headers, body, key):
    span = get_current_span(TraceContextTextMapPropagator().extract(headers)).get_span_context()
    assert span.is_valid, "no trace context"
    return {
        "trace": format_trace_id(span.trace_id),
        "span": format_span_id(span.span_id),
        "flags": int(span.trace_flags),
    }


def make_cloudevent(headers, body, key):
    """Makes the request of a publisher with this SDK, in the mode that `key` names."""
    request = json.loads(body)
    if "time" in request["attributes"]:
        request["attributes"]["time"] = datetime.fromisoformat(request["attributes"]["time"])
    event = CloudEvent(attributes=request["attributes"], data=request["data"])
    made = {"binary": to_binary_event, "structured": to_structured_event}[key](event)
    return {"headers": made.headers, "body": base64.b64encode(made.body).decode()}


# jsonschema ignores a format if its library is missing.
assert {"uri", "uri-reference", "date-time"} <= set(jsonschema.Draft7Validator.FORMAT_CHECKER.checkers)
SCHEMA = jsonschema.Draft7Validator(
    cloudevents_schema(), format_checker=jsonschema.Draft7Validator.FORMAT_CHECKER
)
SCHEMES = {
    "standard": standard,
    "ed25519": ed25519,
    "svix": svix,
    "custom": custom,
    "stripe": stripe,
    "github": github,
    "cloudevent": cloudevent,
    "cloudevents-batch": cloudevents_batch,
    "cloudevent-schema": cloudevent_schema,
    "trace": trace,
    "make-cloudevent": make_cloudevent,
}

for line in sys.stdin:
    request = json.loads(line)
    verify = SCHEMES[request["scheme"]]
    try:
        read = verify(request["headers"], base64.b64decode(request["body"]), request["key"])
        answer = {"accepted": True, "read": read}
    except Exception as refusal:  # each library has its own class
        answer = {"accepted": False, "why": f"{type(refusal).__name__}: {str(refusal)[:200]}"}
    print(json.dumps(answer, default=str))
