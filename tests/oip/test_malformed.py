"""Requests that no client should send. Each is a 4xx with its reason, at once, and the endpoint goes on.

The cases follow the history of the protocol's other servers: each of these has crashed, hung or misled one of them.
"""

import gzip
import json
import struct
import zlib

import pytest
from oip.wire import frame, tensor

INFER = "/v2/models/identity-fp32/infer"
TWO = "/v2/models/two-in-two-out/infer"
LENGTH = "Inference-Header-Content-Length"
ONES = struct.pack("<6f", *[1.0] * 6)


def x(data=None, size=None, datatype="FP32", shape=(2, 3), name="x"):
    return tensor(name, datatype, list(shape), data, size)


def with_inputs(*inputs, **more):
    return json.dumps({"inputs": list(inputs), **more}).encode()


GOOD = with_inputs(x([1, 2, 3, 4, 5, 6]))
FRAMED, FRAMED_HEADERS = frame({"inputs": [x(size=24)]}, ONES)
DEEP = 200_000


def raw_json(data):
    return b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2,3],"data":' + data + b"}]}"


def output(**parameters):
    return with_inputs(x([1] * 6), outputs=[{"name": "y", "parameters": parameters}])


# name: (path, headers, body, status, part of the reason)
CASES = {
    # --- the frame
    "no body": (INFER, [], b"", 400, "empty"),
    "a body of spaces": (INFER, [], b"   ", 400, "not valid"),
    "header length beyond the body": (INFER, [(LENGTH, str(len(GOOD) + 1))], GOOD, 400, "but the body has"),
    "header length beyond 32 bits": (INFER, [(LENGTH, "99999999999")], GOOD, 400, "but the body has"),
    "header length beyond 64 bits": (INFER, [(LENGTH, "9" * 40)], GOOD, 400, "but the body has"),
    "header length negative": (INFER, [(LENGTH, "-1")], GOOD, 400, "not a decimal number"),
    "header length with a plus": (INFER, [(LENGTH, "+5")], GOOD, 400, "not a decimal number"),
    "header length not a number": (INFER, [(LENGTH, "abc")], GOOD, 400, "not a decimal number"),
    "header length with a tail": (INFER, [(LENGTH, f"{len(GOOD)} bytes")], GOOD, 400, "not a decimal number"),
    "header length empty": (INFER, [(LENGTH, "")], GOOD, 400, "not a decimal number"),
    "header length twice": (INFER, [(LENGTH, str(len(GOOD)))] * 2, GOOD, 400, "not a decimal number"),
    "header length one short": (INFER, [(LENGTH, str(len(GOOD) - 1))], GOOD, 400, "not valid"),
    "header length reaches into the tensor": (
        INFER,
        [(LENGTH, str(len(FRAMED) - 4))],
        FRAMED,
        400,
        "",
    ),
    "binary data without header length": (INFER, [], with_inputs(x(size=24)), 400, "only 0 bytes"),
    "binary data cut short": (INFER, FRAMED_HEADERS, FRAMED[:-1], 400, "only 23 bytes"),
    "binary data with a tail": (INFER, FRAMED_HEADERS, FRAMED + b"\0", 400, "1 bytes follow"),
    "binary size of another tensor": (INFER, *reversed(frame({"inputs": [x(size=20)]}, ONES[:20])), 400, "make 24"),
    "binary size beyond 64 bits": (INFER, [], with_inputs(x(size=2**64)), 400, "binary_data_size"),
    "binary size at the end of 64 bits": (INFER, [], with_inputs(x(size=2**64 - 1)), 400, "only 0 bytes"),
    "binary size negative": (INFER, [], with_inputs(x(size=-24)), 400, "binary_data_size"),
    "binary size a string": (INFER, [], with_inputs(x(size="24")), 400, "binary_data_size"),
    "binary size a fraction": (INFER, [], with_inputs(x(size=24.0)), 400, "binary_data_size"),
    "binary and JSON data": (INFER, *reversed(frame({"inputs": [x([1] * 6, 24)]}, ONES)), 400, "once"),
    "raw request too short": (INFER, [(LENGTH, "0")], ONES[:-1], 400, "23 bytes"),
    "raw request too long": (INFER, [(LENGTH, "0")], ONES + b"\0", 400, "25 bytes"),
    "raw request empty": (INFER, [(LENGTH, "0")], b"", 400, "0 bytes"),
    "raw request for two inputs": (TWO, [(LENGTH, "0")], b"\0" * 32, 400, "2 inputs"),
    # --- the JSON
    "not JSON": (INFER, [], b"hello", 400, "not valid"),
    "not an object": (INFER, [], b"[]", 400, "not valid"),
    "null": (INFER, [], b"null", 400, "not valid"),
    "cut JSON": (INFER, [], GOOD[:-2], 400, "not valid"),
    "JSON with a tail": (INFER, [], GOOD + b"x", 400, "not valid"),
    "two JSON values": (INFER, [], GOOD + GOOD, 400, "not valid"),
    "not UTF-8": (INFER, [], b'{"id":"\xff","inputs":[]}', 400, "UTF-8"),
    "UTF-16": (INFER, [], GOOD.decode().encode("utf-16"), 400, "UTF-8"),
    "byte order mark": (INFER, [], b"\xef\xbb\xbf" + GOOD, 400, "not valid"),
    "NUL bytes": (INFER, [], b"\0" * 1000, 400, "not valid"),
    "no inputs": (INFER, [], b"{}", 400, '"inputs"'),
    "inputs null": (INFER, [], b'{"inputs":null}', 400, "not valid"),
    "inputs an object": (INFER, [], b'{"inputs":{}}', 400, "not valid"),
    "inputs of numbers": (INFER, [], b'{"inputs":[1]}', 400, "not valid"),
    "inputs empty": (INFER, [], b'{"inputs":[]}', 400, "missing"),
    "inputs without end": (INFER, [], with_inputs(*[x([1])] * 1000), 400, "more than 16"),
    "inputs twice": (INFER, [], b'{"inputs":[],' + GOOD[1:], 400, "twice"),
    "a tensor twice": (INFER, [], with_inputs(x([1] * 6), x([2] * 6)), 400, "twice"),
    "data twice": (INFER, [], raw_json(b'[1,2,3,4,5,6],"data":[1,2,3,4,5,6]'), 400, "twice"),
    "an input missing": (TWO, [], with_inputs(tensor("a", "FP32", [4], [1] * 4)), 400, "missing"),
    "an input too many": (INFER, [], with_inputs(x([1] * 6), x([1] * 6, name="z")), 400, "no input"),
    "an input of another name": (INFER, [], with_inputs(x([1] * 6, name="X")), 400, "no input"),
    "a name that is a number": (INFER, [], with_inputs(x([1] * 6, name=7)), 400, "not valid"),
    "a name with a NUL": (INFER, [], with_inputs(x([1] * 6, name="x\0")), 400, "no input"),
    "no name": (INFER, [], b'{"inputs":[{"datatype":"FP32","shape":[2,3],"data":[]}]}', 400, '"name"'),
    "no datatype": (INFER, [], b'{"inputs":[{"name":"x","shape":[2,3],"data":[]}]}', 400, '"datatype"'),
    "no shape": (INFER, [], b'{"inputs":[{"name":"x","datatype":"FP32","data":[]}]}', 400, '"shape"'),
    "no data": (INFER, [], with_inputs(x()), 400, '"data"'),
    "another datatype": (INFER, [], with_inputs(x([1] * 6, datatype="INT32")), 400, "FP32"),
    "an unknown datatype": (INFER, [], with_inputs(x([1] * 6, datatype="FP33")), 400, "FP32"),
    "datatype in lower case": (INFER, [], with_inputs(x([1] * 6, datatype="fp32")), 400, "FP32"),
    "strings": (INFER, [], with_inputs(x(["a"] * 6, datatype="BYTES")), 400, "FP32"),
    "another shape": (INFER, [], with_inputs(x([1] * 6, shape=[3, 2])), 400, "[2, 3]"),
    "another rank": (INFER, [], with_inputs(x([1] * 6, shape=[6])), 400, "[2, 3]"),
    "a negative dimension": (INFER, [], with_inputs(x([1] * 6, shape=[2, -3])), 400, "shape"),
    "dimension -1": (INFER, [], with_inputs(x([1] * 6, shape=[-1, 3])), 400, "shape"),
    "a dimension of 0": (INFER, [], with_inputs(x([], shape=[0, 3])), 400, "[2, 3]"),
    "a fractional dimension": (INFER, [], with_inputs(x([1] * 6, shape=[2.0, 3])), 400, "shape"),
    "element count overflows": (INFER, [], with_inputs(x([1], shape=[2**4, 2**60 + 2])), 400, "[2, 3]"),
    "byte size overflows": (INFER, [], with_inputs(x([1], shape=[2**2, 2**60 + 2])), 400, "[2, 3]"),
    "a dimension beyond 64 bits": (INFER, [], with_inputs(x([1], shape=[2**64, 3])), 400, "shape"),
    "a shape without end": (INFER, [], with_inputs(x([1], shape=[1] * 10_000)), 400, "shape"),
    "too few elements": (INFER, [], with_inputs(x([1] * 5)), 400, "5 elements"),
    "too many elements": (INFER, [], with_inputs(x([1] * 7)), 400, "more than the 6"),
    "no elements": (INFER, [], with_inputs(x([])), 400, "0 elements"),
    "ragged rows": (INFER, [], with_inputs(x([[1, 2, 3], [4, 5]])), 400, "nested"),
    "rows for columns": (INFER, [], with_inputs(x([[1, 2], [3, 4], [5, 6]])), 400, "nested"),
    "numbers beside rows": (INFER, [], with_inputs(x([1, 2, 3, [4, 5, 6]])), 400, "nested"),
    "data is a number": (INFER, [], with_inputs(x(1)), 400, "not an array"),
    "data is a string": (INFER, [], with_inputs(x("AAAA")), 400, "not an array"),
    "data is an object": (INFER, [], with_inputs(x({"0": 1})), 400, "not an array"),
    "null among numbers": (INFER, [], with_inputs(x([1, 2, None, 4, 5, 6])), 400, "[0, 2]"),
    "a string among numbers": (INFER, [], with_inputs(x([1, 2, 3, "4", 5, 6])), 400, "[1, 0]"),
    "a boolean among numbers": (INFER, [], with_inputs(x([True] * 6)), 400, "[0, 0]"),
    "a number beyond FP32": (INFER, [], with_inputs(x([1e39] * 6)), 400, "[0, 0]"),
    "a number beyond FP64": (INFER, [], raw_json(b"[1e400,0,0,0,0,0]"), 400, "[0, 0]"),
    "NaN": (INFER, [], raw_json(b"[NaN,0,0,0,0,0]"), 400, "binary data"),
    "Infinity": (INFER, [], raw_json(b"[0,-Infinity,0,0,0,0]"), 400, "binary data"),
    "a leading zero": (INFER, [], raw_json(b"[01,0,0,0,0,0]"), 400, "not valid"),
    "a hexadecimal number": (INFER, [], raw_json(b"[0x1,0,0,0,0,0]"), 400, "not valid"),
    "a trailing comma": (INFER, [], raw_json(b"[1,2,3,4,5,6,]"), 400, "not valid"),
    "a comment": (INFER, [], raw_json(b"[1,2,3,4,5,6]/**/"), 400, "not valid"),
    "deep data": (INFER, [], raw_json(b"[" * DEEP + b"1" + b"]" * DEEP), 400, "nested"),
    "deep data without end": (INFER, [], raw_json(b"[" * DEEP), 400, "not valid"),
    "deep inputs": (INFER, [], b'{"inputs":' + b"[" * DEEP + b"]" * DEEP + b"}", 400, "not valid"),
    "deep id": (INFER, [], b'{"id":' + b'{"a":' * DEEP + b"1" + b"}" * DEEP + b',"inputs":[]}', 400, "not valid"),
    "deep parameter": (
        INFER,
        [],
        b'{"inputs":[],"parameters":{"timeout":' + b"[" * DEEP + b"]" * DEEP + b"}}",
        400,
        "timeout",
    ),
    "id is a number": (INFER, [], GOOD[:-1] + b',"id":7}', 400, "not valid"),
    "a whole number with a fraction": (
        "/v2/models/identity-int32/infer",
        [],
        with_inputs(x([1.0] * 6, datatype="INT32")),
        400,
        "[0, 0]",
    ),
    "a whole number out of range": (
        "/v2/models/identity-int8/infer",
        [],
        with_inputs(x([0, 0, 0, 0, 0, 128], datatype="INT8")),
        400,
        "[1, 2]",
    ),
    "a negative unsigned number": (
        "/v2/models/identity-uint64/infer",
        [],
        with_inputs(x([-1] * 6, datatype="UINT64")),
        400,
        "[0, 0]",
    ),
    "a number as BOOL": (
        "/v2/models/identity-bool/infer",
        [],
        with_inputs(x([1, 0, 1, 0, 1, 0], datatype="BOOL")),
        400,
        "true or false",
    ),
    "a byte of 2 as BOOL": ("/v2/models/identity-bool/infer", [(LENGTH, "0")], b"\0\1\0\1\0\2", 400, "[1, 2]"),
    "FP16 as JSON": ("/v2/models/identity-fp16/infer", [], with_inputs(x([1] * 6, datatype="FP16")), 400, "binary"),
    # --- outputs and parameters
    "an output of another name": (INFER, [], with_inputs(x([1] * 6), outputs=[{"name": "q"}]), 400, "no output"),
    "an output twice": (INFER, [], with_inputs(x([1] * 6), outputs=[{"name": "y"}] * 2), 400, "twice"),
    "an output without a name": (INFER, [], with_inputs(x([1] * 6), outputs=[{}]), 400, "name"),
    "outputs is a string": (INFER, [], with_inputs(x([1] * 6), outputs="y"), 400, "not valid"),
    "outputs without end": (INFER, [], with_inputs(x([1] * 6), outputs=[{"name": "y"}] * 1000), 400, "more than 16"),
    "binary_data a number": (INFER, [], output(binary_data=1), 400, "binary_data"),
    "classification negative": (INFER, [], output(classification=-1), 400, "classification"),
    "classification a string": (INFER, [], output(classification="2"), 400, "classification"),
    "an output in shared memory": (INFER, [], output(shared_memory_region="r"), 400, "shared memory"),
    "parameters an array": (INFER, [], with_inputs(x([1] * 6), parameters=[1]), 400, "not valid"),
    "timeout negative": (INFER, [], with_inputs(x([1] * 6), parameters={"timeout": -1}), 400, "timeout"),
    "priority negative": (INFER, [], with_inputs(x([1] * 6), parameters={"priority": -1}), 400, "priority"),
    "a reserved parameter": (INFER, [], with_inputs(x([1] * 6), parameters={"triton_x": 1}), 400, "reserved"),
    "a sequence": (INFER, [], with_inputs(x([1] * 6), parameters={"sequence_id": 1}), 400, "stateless"),
    "deadline not a number": (INFER, [("Inference-Deadline-Ms", "soon")], GOOD, 400, "Deadline"),
    "deadline negative": (INFER, [("Inference-Deadline-Ms", "-5")], GOOD, 400, "Deadline"),
    "deadline of nothing": (INFER, [("Inference-Deadline-Ms", "0")], GOOD, 400, "Deadline"),
    # --- content codings
    "an unknown coding": (INFER, [("Content-Encoding", "br")], GOOD, 415, "gzip, deflate"),
    "two codings": (INFER, [("Content-Encoding", "gzip, gzip")], gzip.compress(gzip.compress(GOOD)), 415, "only one"),
    "gzip that is none": (INFER, [("Content-Encoding", "gzip")], GOOD, 400, "not valid gzip"),
    "gzip cut short": (INFER, [("Content-Encoding", "gzip")], gzip.compress(GOOD)[:-4], 400, "not valid gzip"),
    "gzip with a tail": (INFER, [("Content-Encoding", "gzip")], gzip.compress(GOOD) + b"x", 400, "not valid gzip"),
    "gzip of nothing": (INFER, [("Content-Encoding", "gzip")], b"", 400, "not valid gzip"),
    "deflate that is gzip": (INFER, [("Content-Encoding", "deflate")], gzip.compress(GOOD), 400, "not valid deflate"),
    "deflate with a wrong checksum": (
        INFER,
        [("Content-Encoding", "deflate")],
        zlib.compress(GOOD)[:-1] + b"\0",
        400,
        "not valid deflate",
    ),
    "a gzip bomb": (INFER, [("Content-Encoding", "gzip")], gzip.compress(b" " * (64 << 20)), 413, "decompressed"),
    "a deflate bomb": (INFER, [("Content-Encoding", "deflate")], zlib.compress(b"\0" * (64 << 20)), 413, "decompressed"),
    # --- names
    "an unknown model": ("/v2/models/nobody/infer", [], GOOD, 404, "no model"),
    "an unknown version": ("/v2/models/identity-fp32/versions/2/infer", [], GOOD, 404, "version"),
    "a version far out of range": (f"/v2/models/identity-fp32/versions/{'9' * 30}/infer", [], GOOD, 404, "version"),
    "a path for a model": ("/v2/models/..%2F..%2Fetc%2Fpasswd/infer", [], GOOD, 404, "no model"),
    "dots for a model": ("/v2/models/%2e%2e/infer", [], GOOD, 404, "no model"),
    "a NUL in a model": ("/v2/models/identity-fp32%00/infer", [], GOOD, 404, "no model"),
    "a long model": (f"/v2/models/{'m' * 5000}/infer", [], GOOD, 404, "no model"),
    "broken percent-encoding": ("/v2/models/%zz/infer", [], GOOD, 400, "percent"),
    "percent-encoded rubbish": ("/v2/models/%ff%fe/infer", [], GOOD, 400, "percent"),
    "an unknown action": ("/v2/models/identity-fp32/explode", [], GOOD, 404, ""),
    "generation": ("/v2/models/identity-fp32/generate", [], b"{}", 501, "text generation"),
    # --- the repository
    "index not JSON": ("/v2/repository/index", [], b"[", 400, "not valid"),
    "index ready a number": ("/v2/repository/index", [], b'{"ready":1}', 400, "ready"),
    "index deep": ("/v2/repository/index", [], b'{"ready":' + b"[" * DEEP + b"true" + b"]" * DEEP + b"}", 400, "ready"),
    "load of an unknown model": ("/v2/repository/models/nobody/load", [], b"", 404, "no model"),
    "load of a path": ("/v2/repository/models/..%2F..%2Ftmp/load", [], b"", 404, "no model"),
    "load of a space": ("/v2/repository/models/%20/load", [], b"", 404, "no model"),
    "load with a huge file name": (
        "/v2/repository/models/identity-fp32/load",
        [],
        json.dumps({"parameters": {"file:" + "A" * 100_000: "YQ=="}}).encode(),
        400,
        "from its directory",
    ),
    "load not JSON": ("/v2/repository/models/identity-fp32/load", [], b"{", 400, "not valid"),
    "unload with a field beside": ("/v2/repository/models/identity-fp32/unload", [], b'{"dry_run":true}', 400, "dry_run"),
    "load with a field beside": ("/v2/repository/models/identity-fp32/load", [], b'{"parameters":{},"x":1}', 400, "nothing else"),
    "unload of an unknown model": ("/v2/repository/models/nobody/unload", [], b"", 404, "no model"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_with_its_reason(endpoint, name):
    path, headers, body, status, reason = CASES[name]
    reply = endpoint.post(path, body, headers)
    assert reply.status == status, reply
    assert reason in reply.error() or reply.headers.get("accept-encoding") == reason
    assert len(reply.body) < 1500, "a refusal does not echo what it refuses"


def test_the_endpoint_has_survived_and_still_answers(endpoint):
    """After every case above, on the same daemon, with the same engine hosts."""
    assert endpoint.post(INFER, GOOD).json()["outputs"][0]["data"] == [1, 2, 3, 4, 5, 6]
    statistics = endpoint.get("/v2/models/stats").json()["model_stats"]
    assert all(s["inferd"]["panics"] == 0 for s in statistics)
    assert all(s["inferd"]["slots_in_use"] == 0 for s in statistics), "no refused request keeps its slot"
    assert all(not any(s["inferd"]["host_ends"].values()) for s in statistics), "no engine host ended"


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/v2", "GET, HEAD"),
        ("/v2/health/live", "GET, HEAD"),
        ("/v2/health/ready", "GET, HEAD"),
        ("/v2/models/identity-fp32", "GET, HEAD"),
        ("/v2/models/identity-fp32/ready", "GET, HEAD"),
        ("/v2/models/identity-fp32/config", "GET, HEAD"),
        ("/v2/models/identity-fp32/stats", "GET, HEAD"),
        ("/v2/models/stats", "GET, HEAD"),
        (INFER, "POST"),
        ("/v2/repository/index", "POST"),
        ("/v2/repository/models/identity-fp32/load", "POST"),
        ("/v2/repository/models/identity-fp32/unload", "POST"),
    ],
)
def test_another_method_is_told_the_right_ones(endpoint, path, allowed):
    for method in {"GET", "POST", "PUT", "DELETE", "PATCH"} - set(allowed.split(", ")):
        reply = endpoint.request(method, path, b"{}")
        assert (reply.status, reply.headers["allow"]) == (405, allowed)
        assert reply.error()


def test_a_request_that_ends_early_is_not_answered_as_if_it_were_whole(endpoint):
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(GOOD) + 50}\r\n\r\n".encode()
    got = endpoint.send(head + GOOD)
    assert not got or got.split(b" ")[1] in (b"400", b"408"), got


@pytest.mark.parametrize(
    "chunks",
    [
        b"zz\r\n{}\r\n0\r\n\r\n",
        b"-1\r\n{}\r\n0\r\n\r\n",
        b"ffffffffffffffffff\r\n{}\r\n0\r\n\r\n",
        b"5\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}",
    ],
)
def test_broken_chunks_are_not_answered_as_if_they_were_whole(endpoint, chunks):
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    got = endpoint.send(head + chunks)
    assert not got or got.split(b" ")[1] in (b"400", b"408"), got


def test_content_length_and_chunks_together_are_no_two_requests(endpoint):
    """The classic of request smuggling: what follows must not be taken for a request of its own."""
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    got = endpoint.send(head + b"0\r\n\r\nGET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
    assert b"extensions" not in got or got.count(b"HTTP/1.1") <= 2, got
