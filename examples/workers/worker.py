"""Processes the messages of a queue. Arguments: API URL, queue. The key is in BALTO_API_KEY."""
import json, os, signal, sys, urllib.error, urllib.request

api, queue = sys.argv[1:3]
stopping = False
done = set()  # in a real worker: a table with the event ids, written in the handler's transaction


def call(action: str, body: dict) -> dict:
    headers = {"content-type": "application/json"}
    if key := os.environ.get("BALTO_API_KEY"):
        headers["authorization"] = f"Bearer {key}"
    request = urllib.request.Request(
        f"{api}/v1/queues/{queue}/{action}", json.dumps(body).encode(), headers, method="POST"
    )
    with urllib.request.urlopen(request, timeout=90) as answer:
        return json.load(answer)


def handle(event: dict) -> None:
    if event["id"] in done:
        return  # delivered twice: the work is already done
    print("handled", event["id"], event["type"], json.dumps(event["data"]), flush=True)
    done.add(event["id"])


def stop(*_) -> None:
    global stopping
    stopping = True


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    while not stopping:
        for message in call("receive", {"max": 10, "wait": "1s", "worker": "python"})["messages"]:
            receipts = {"receipts": [message["receipt"]]}
            try:
                handle(message["event"])
            except Exception as error:  # the queue's retry policy says when it comes back
                call("nack", receipts | {"reason": str(error)[:120]})
            else:
                call("ack", receipts)
