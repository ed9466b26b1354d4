"""What the tests of the Open Inference Protocol share: a way to send the endpoint any bytes."""

import dataclasses
import http.client
import json
import pathlib
import shutil
import socket

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "models"
IMU_MOTION = ROOT / "app" / "inferd" / "models" / "imu-motion"
TYPES = ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "fp16", "bf16", "fp32", "fp64"]


@dataclasses.dataclass
class Reply:
    """An HTTP reply, read to its end."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self):
        return json.loads(self.body, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))

    def error(self):
        """The reason of a refusal, which is in the protocol's form."""
        assert self.headers["content-type"] == "application/json", self
        body = self.json()
        assert isinstance(body["error"], str) and body["error"], self
        return body["error"]


@dataclasses.dataclass
class Endpoint:
    """Where the daemon answers."""

    host: str
    port: int

    @property
    def address(self):
        return f"{self.host}:{self.port}"

    def request(self, method, path, body=None, headers=None, chunked=False):
        """One request on a connection of its own; nothing is added to the headers but Host and Content-Length."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in headers or []:
                connection.putheader(name, value)
            if chunked:
                connection.putheader("Transfer-Encoding", "chunked")
            elif body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders()
            if chunked:
                for piece in body:
                    connection.send(b"%x\r\n%s\r\n" % (len(piece), piece))
                connection.send(b"0\r\n\r\n")
            elif body is not None:
                connection.send(body)
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path, headers=None):
        return self.request("GET", path, headers=headers)

    def post(self, path, body=b"", headers=None):
        return self.request("POST", path, body, headers)

    def send(self, data):
        """Sends bytes as they are and reads until the other side closes."""
        with socket.create_connection((self.host, self.port), timeout=30) as s:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            got = b""
            while piece := s.recv(65536):
                got += piece
        return got


def frame(header, *tensors):
    """A request with binary tensors: the body, and the header that says where they begin."""
    text = json.dumps(header).encode()
    return b"".join([text, *tensors]), [("Inference-Header-Content-Length", str(len(text)))]


def tensor(name, datatype, shape, data=None, size=None):
    """A named tensor with JSON data, or with the size of its binary data."""
    t = {"name": name, "datatype": datatype, "shape": shape}
    if data is not None:
        t["data"] = data
    if size is not None:
        t["parameters"] = {"binary_data_size": size}
    return t


def adapted(source, folder, **budget):
    """A copy of a model directory in `folder`, with another budget: `adapted(path, folder, workers=1, queue=2)`."""
    copy = folder / source.name
    shutil.copytree(source, copy)
    manifest = copy / "manifest.toml"
    lines = [line for line in manifest.read_text().splitlines() if line.split(" = ")[0] not in budget]
    at = lines.index("[budget]") + 1
    lines[at:at] = [f"{key} = {value}" for key, value in budget.items()]
    manifest.write_text("\n".join(lines) + "\n")
    return copy
