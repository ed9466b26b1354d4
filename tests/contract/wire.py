"""What the contract tests share: windows, and a client that sends exactly what it is told."""

import json
import socket

CHANNELS = 9
TIMESTEPS = 100


def window(value="0", rows=TIMESTEPS, columns=CHANNELS, changed=None):
    """A body as text: `value` everywhere but where `changed` maps (row, column) or row to another text."""
    changed = changed or {}
    lines = []
    for t in range(rows):
        cells = [changed.get((t, c), value) for c in range(columns)]
        lines.append(changed.get(t, f"[{','.join(cells)}]"))
    return f'{{"x":[{",".join(lines)}]}}'


class Answer:
    """An HTTP answer: its status, its headers by lower-case name (a list where one comes twice), its body."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        """The body as JSON; NaN and Infinity are no JSON."""

        def refuse(token):
            raise AssertionError(f"{token} is not JSON")

        return json.loads(self.body, parse_constant=refuse)

    def __repr__(self):
        return f"{self.status} {self.headers} {self.body[:300]}"


class Wire:
    """One connection."""

    def __init__(self, daemon):
        self.socket = socket.create_connection(("127.0.0.1", daemon.port), timeout=30)
        self.reader = self.socket.makefile("rb")

    def send(self, data):
        """Sends bytes (or text) as they are."""
        self.socket.sendall(data.encode() if isinstance(data, str) else data)
        return self

    def request(self, method, path, body=b"", headers=()):
        """Sends one request; nothing is added but Host and Content-Length."""
        body = body.encode() if isinstance(body, str) else body
        head = f"{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers)
        return self.send(head.encode() + b"\r\n" + body)

    def answer(self, method="GET"):
        """Reads one answer."""
        line = self.reader.readline()
        assert line, "the connection was closed without an answer"
        headers = {}
        while (raw := self.reader.readline()) not in (b"\r\n", b""):
            name, _, value = raw.decode("latin-1").partition(":")
            name, value = name.lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        body = b"" if method == "HEAD" else self.reader.read(int(headers.get("content-length", 0)))
        return Answer(int(line.split()[1]), headers, body)

    def rest(self):
        """What still comes until the other side closes."""
        return self.reader.read()

    def reset(self):
        """Leaves like a process that was killed: the other side gets a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.close()

    def close(self):
        """Leaves."""
        self.reader.close()
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def ask(daemon, method, path, body=b"", headers=()):
    """One request on a connection of its own."""
    with Wire(daemon) as wire:
        return wire.request(method, path, body, headers).answer(method)
