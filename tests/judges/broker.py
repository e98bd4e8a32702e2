"""Runs RabbitMQ on its own ports and directories, until standard input ends.

Usage: broker.py DIRECTORY PORT TLS_PORT DIST_PORT EPMD_PORT

Reads the commands `kill`, `stop`, `start`, `alarm` and `clear`, one a line, and prints `done` after each. Prints `done` once the first
start has answered a handshake. `ca.pem`, `cert.pem` and `key.pem` in the directory are the certificates of the TLS port. Under
the name `mutual.localhost` it requires a client certificate of that authority; under others it asks for none.
"""
import os
import pathlib
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time

directory = pathlib.Path(sys.argv[1]).resolve()
port, tls_port, dist_port, epmd_port = sys.argv[2:6]
root = pathlib.Path(__file__).resolve().parents[2] / "target" / "judges" / "rabbitmq"
erlang = root / "usr" / "lib" / "erlang"
server = next((root / "usr" / "lib" / "rabbitmq" / "lib").glob("rabbitmq_server-*")) / "sbin" / "rabbitmq-server"


def prepare():
    for name in ["home", "mnesia", "log", "plugins", "config"]:
        (directory / name).mkdir(exist_ok=True)
    cookie = directory / "home" / ".erlang.cookie"
    cookie.write_text(secrets.token_hex(16))
    cookie.chmod(0o400)
    (directory / "enabled_plugins").write_text("[].\n")
    lines = [
        "disk_free_limit.absolute = 50MB",
        "vm_memory_high_watermark.absolute = 400MB",
        "log.console = false",
        "log.file.level = warning",
    ]
    terms = "[]."
    if (directory / "cert.pem").exists():
        lines.append(f"listeners.ssl.default = 127.0.0.1:{tls_port}")
        names = [("cacertfile", "ca.pem"), ("certfile", "cert.pem"), ("keyfile", "key.pem")]
        files = ", ".join(f'{{{option}, "{directory / name}"}}' for option, name in names)
        mutual = f"[{files}, {{verify, verify_peer}}, {{fail_if_no_peer_cert, true}}]"
        names = f'{{sni_hosts, [{{"mutual.localhost", {mutual}}}]}}'
        terms = f"[{{rabbit, [{{ssl_options, [{files}, {{verify, verify_none}}, {names}]}}]}}]."
    (directory / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
    (directory / "advanced.config").write_text(terms + "\n")


def environment():
    return {
        "HOME": str(directory / "home"),
        "PATH": f"{erlang / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "RABBITMQ_NODENAME": f"balto{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": port,
        "RABBITMQ_DIST_PORT": dist_port,
        "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
        "RABBITMQ_LOG_BASE": str(directory / "log"),
        "RABBITMQ_LOGS": str(directory / "log" / "broker.log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(directory / "advanced.config"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(directory / "config"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_PID_FILE": str(directory / "pid"),
        "RABBITMQ_PLUGINS_EXPAND_DIR": str(directory / "plugins"),
        "RABBITMQ_FEATURE_FLAGS_FILE": str(directory / "feature_flags"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1",
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": epmd_port,
    }


def spawn(command):
    log = open(directory / "output", "ab")
    return subprocess.Popen(
        command, env=environment(), cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        start_new_session=True,
    )


def set_watermark(value):
    """0 is an alarm: the broker takes no messages."""
    command = [str(server.parent / "rabbitmqctl"), "set_vm_memory_high_watermark", *value]
    subprocess.run(command, env=environment(), cwd=directory, check=True, stdout=subprocess.DEVNULL)


def answers():
    try:
        with socket.create_connection(("127.0.0.1", int(port)), timeout=5) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"
    except OSError:
        return False


def start():
    broker = spawn([str(server)])
    deadline = time.monotonic() + 120
    while not answers():
        if broker.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"the broker has not started:\n{(directory / 'output').read_text()[-3000:]}")
        time.sleep(0.05)
    return broker


def end(process, number):
    # Its own session: the group has all of its processes.
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass
    process.wait()


prepare()
epmd = spawn([str(erlang / "bin" / "epmd"), "-port", epmd_port])
broker = start()
print("done", flush=True)
try:
    for line in sys.stdin:
        command = line.strip()
        if command == "kill":
            end(broker, signal.SIGKILL)
        elif command == "stop":
            end(broker, signal.SIGTERM)
        elif command == "start":
            broker = start()
        elif command == "alarm":
            set_watermark(["0"])
        elif command == "clear":
            set_watermark(["absolute", "400MB"])
        else:
            sys.exit(f"unknown command {command}")
        print("done", flush=True)
finally:
    end(broker, signal.SIGKILL)
    end(epmd, signal.SIGKILL)
    shutil.rmtree(directory / "mnesia", ignore_errors=True)
