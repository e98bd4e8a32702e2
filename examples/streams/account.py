"""An aggregate over a Balto stream: load, decide, append, try again on a conflict.

Usage: BALTO_URL=http://127.0.0.1:8400 BALTO_API_KEY=... python3 account.py STREAM AMOUNT
Withdraws AMOUNT from the account whose events are in STREAM. Prints the new balance.
"""

import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request
import uuid

URL = os.environ.get("BALTO_URL", "http://127.0.0.1:8400")
KEY = os.environ.get("BALTO_API_KEY", "")


def call(method, path, body=None, headers=None):
    request = urllib.request.Request(URL + path, method=method, headers=headers or {})
    if KEY:
        request.add_header("authorization", "Bearer " + KEY)
    data = None
    if body is not None:
        request.add_header("content-type", "application/json")
        data = json.dumps(body).encode()
    try:
        with urllib.request.urlopen(request, data) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def load(stream):
    """The balance, and the version of the stream that it rests on."""
    path = "/v1/streams/" + urllib.parse.quote(stream, safe="") + "/events?limit=1000"
    balance, version = 0, 0
    page = path
    while page:
        status, answer = call("GET", page)
        if status == 404:
            return 0, 0
        if status != 200:
            raise RuntimeError(answer)
        for event in answer["data"]:
            sign = 1 if event["type"] == "account.deposited" else -1
            balance += sign * event["data"]["amount"]
            version = event["streamVersion"]
        following = answer["nextVersion"]
        page = f"{path}&fromVersion={following}" if following else None
    return balance, version


def append(stream, expected, events):
    """Appends all events, or none. The key makes a lost answer harmless: repeat the request."""
    path = "/v1/streams/" + urllib.parse.quote(stream, safe="") + "/events"
    body = {"events": events, "expectedVersion": expected}
    key = {"idempotency-key": str(uuid.uuid4())}
    for _ in range(5):
        status, answer = call("POST", path, body, key)
        if status not in (429, 503):
            return status, answer
    raise RuntimeError(answer)


def withdraw(stream, amount):
    """Another writer may append between the load and the append: then decide again."""
    while True:
        balance, version = load(stream)
        if balance < amount:
            raise SystemExit(f"the balance is {balance}")
        event = {"type": "account.withdrawn", "data": {"amount": amount}}
        status, answer = append(stream, version or "none", [event])
        if status == 202:
            return balance - amount
        if answer["code"] != "version_conflict":
            raise RuntimeError(answer)


if __name__ == "__main__":
    print(withdraw(sys.argv[1], int(sys.argv[2])))
