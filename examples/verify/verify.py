"""Verifies a webhook. Arguments: secret, id, timestamp, signature header. Body on standard input."""
import base64, hashlib, hmac, sys, time


def verify(secret: str, message_id: str, timestamp: str, header: str, body: bytes) -> bool:
    if abs(time.time() - int(timestamp)) > 300:
        return False
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{message_id}.{timestamp}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return any(hmac.compare_digest(part.encode(), expected.encode()) for part in header.split(" "))


if __name__ == "__main__":
    sys.exit(0 if verify(*sys.argv[1:5], sys.stdin.buffer.read()) else 1)
