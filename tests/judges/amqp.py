"""An AMQP client that was not written here: pika. Reads one JSON command a line, prints one JSON answer a line.

Usage: amqp.py PORT
"""
import base64
import json
import signal
import sys

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker, NackError, UnroutableError

parameters = pika.ConnectionParameters(
    "127.0.0.1", int(sys.argv[1]), heartbeat=0, connection_attempts=200, retry_delay=0.1,
)
connection = None
channel = None


def open_channel():
    global connection, channel
    if connection is None or not connection.is_open:
        connection = pika.BlockingConnection(parameters)
        channel = None
    if channel is None or not channel.is_open:
        channel = connection.channel()
        channel.confirm_delivery()
    return channel


def encoded(body):
    try:
        return body.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(body).decode()


def shown(method, properties, body):
    members = ["content_type", "delivery_mode", "message_id", "timestamp", "type", "app_id", "headers"]
    values = {name: getattr(properties, name) for name in members}
    values.update(key=method.routing_key, exchange=method.exchange, body=encoded(body))
    return values


def publish(command):
    properties = dict(command.get("properties", {}))
    properties.setdefault("delivery_mode", 2)
    body = command["body"]
    body = base64.b64decode(body[7:]) if body.startswith("base64:") else body.encode()
    open_channel().basic_publish(
        command["exchange"], command["key"], body, pika.BasicProperties(**properties), mandatory=True,
    )
    return True


def topics(command):
    """Which keys match each pattern: a queue for each pattern gets each key once."""
    topic = open_channel()
    exchange = "topics"
    topic.exchange_declare(exchange, "topic", durable=True)
    queues = []
    for pattern in command["patterns"]:
        queue = topic.queue_declare("", exclusive=True).method.queue
        topic.queue_bind(queue, exchange, pattern)
        queues.append(queue)
    for key in command["keys"]:
        topic.basic_publish(exchange, key, key.encode())
    found = []
    for queue in queues:
        keys = []
        while True:
            method, _, body = topic.basic_get(queue, auto_ack=True)
            if method is None:
                break
            keys.append(body.decode())
        topic.queue_delete(queue)
        found.append(keys)
    topic.exchange_delete(exchange)
    return found


def get(command):
    messages = []
    while len(messages) < command.get("most", 1000):
        method, properties, body = open_channel().basic_get(command["queue"], auto_ack=True)
        if method is None:
            break
        messages.append(shown(method, properties, body))
    return messages


def run(command):
    name = command["op"]
    channel = open_channel()
    if name == "exchange":
        channel.exchange_declare(command["name"], command.get("kind", "topic"), durable=True)
    elif name == "deleteExchange":
        channel.exchange_delete(command["name"])
    elif name == "queue":
        channel.queue_declare(command["name"], durable=True, arguments=command.get("arguments"))
    elif name == "bind":
        channel.queue_bind(command["queue"], command["exchange"], command["key"])
    elif name == "deleteQueue":
        channel.queue_delete(command["name"])
    elif name == "count":
        return channel.queue_declare(command["name"], passive=True).method.message_count
    elif name == "publish":
        return publish(command)
    elif name == "get":
        return get(command)
    elif name == "topics":
        return topics(command)
    else:
        raise ValueError(name)
    return True


def give_up(_signal, _frame):
    raise TimeoutError("no answer from the broker within 30 s")


signal.signal(signal.SIGALRM, give_up)
for line in sys.stdin:
    signal.alarm(30)
    try:
        answer = {"ok": run(json.loads(line))}
    except TimeoutError as error:
        # The answer may still come, so the connection cannot be used again.
        connection = None
        answer = {"error": str(error)}
    except UnroutableError:
        answer = {"error": "unroutable"}
    except NackError:
        answer = {"error": "nack"}
    except ChannelClosedByBroker as error:
        answer = {"error": f"{error.reply_code} {error.reply_text}"}
    except (AMQPError, OSError) as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    finally:
        signal.alarm(0)
    print(json.dumps(answer), flush=True)
