"""The unmodified client of Triton (tritonclient[http] from PyPI), with its default calls."""

import concurrent.futures

import numpy as np
import pytest
import tritonclient.http as triton
from oip.wire import IMU_MOTION, TYPES
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, triton_to_np_dtype

VALUES = {
    "BOOL": [True, False, True, True, False, False],
    "UINT8": [0, 1, 127, 128, 254, 255],
    "UINT16": [0, 1, 255, 256, 32768, 65535],
    "UINT32": [0, 1, 2, 65536, 2**30, 2**31 - 1],
    "UINT64": [0, 1, 2, 65536, 2**30, 2**31 - 1],
    "INT8": [-128, -1, 0, 1, 100, 127],
    "INT16": [-32768, -1, 0, 1, 256, 32767],
    "INT32": [-(2**31), -1, 0, 1, 65536, 2**31 - 1],
    "INT64": [-(2**31), -1, 0, 1, 65536, 2**31 - 1],
    "FP16": [0, 1, -1.5, 0.1, 65504, -65504],
    "BF16": [0, 1, -1.5, 3e38, -3e38, 0.5],
    "FP32": [0, 1, -1.5, 0.1, 3e38, -1e-30],
    "FP64": [0, 1, -1.5, 0.5, 2.0**100, -(2.0**-100)],
}


@pytest.fixture
def client(endpoint):
    with triton.InferenceServerClient(endpoint.address, concurrency=4) as c:
        yield c


def identity_input(dtype, binary=True):
    values = np.array(VALUES[dtype], dtype=triton_to_np_dtype(dtype)).reshape(2, 3)
    x = triton.InferInput("x", [2, 3], dtype)
    x.set_data_from_numpy(values, binary_data=binary)
    return x, values


def test_the_server_is_live_and_ready(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("identity-fp32")
    assert client.is_model_ready("identity-fp32", "1")
    assert not client.is_model_ready("identity-fp32", "2")
    assert not client.is_model_ready("nobody")


def test_the_server_announces_what_it_has(client):
    metadata = client.get_server_metadata()
    assert metadata["name"] == "inferd"
    assert "binary_tensor_data" in metadata["extensions"]
    assert not [e for e in metadata["extensions"] if "shared_memory" in e or e in ("trace", "logging", "sequence")]


def test_metadata_and_configuration_of_a_model(client):
    metadata = client.get_model_metadata("two-in-two-out")
    assert metadata["versions"] == ["1"]
    shapes = {t["name"]: (t["datatype"], t["shape"]) for t in metadata["inputs"] + metadata["outputs"]}
    assert shapes == {"a": ("FP32", [4]), "b": ("INT32", [4]), "sum": ("FP32", [4]), "product": ("INT32", [4])}
    assert client.get_model_metadata("two-in-two-out", "1") == metadata
    config = client.get_model_config("two-in-two-out")
    assert config["max_batch_size"] == 0
    assert [(t["name"], t["data_type"], t["dims"]) for t in config["input"]] == [
        ("a", "TYPE_FP32", [4]),
        ("b", "TYPE_INT32", [4]),
    ]


@pytest.mark.parametrize("dtype", [t.upper() for t in TYPES])
def test_every_type_comes_back_as_binary_data(client, dtype):
    x, values = identity_input(dtype)
    result = client.infer(f"identity-{dtype.lower()}", [x])
    np.testing.assert_array_equal(result.as_numpy("y"), values)
    assert result.get_output("y")["parameters"]["binary_data_size"] == values.nbytes


@pytest.mark.parametrize("dtype", [t.upper() for t in TYPES if t not in ("fp16", "bf16")])
def test_every_type_that_json_has_comes_back_as_json(client, dtype):
    x, values = identity_input(dtype, binary=False)
    y = triton.InferRequestedOutput("y", binary_data=False)
    result = client.infer(f"identity-{dtype.lower()}", [x], outputs=[y])
    np.testing.assert_array_equal(result.as_numpy("y"), values)
    assert "data" in result.get_output("y")


@pytest.mark.parametrize("dtype", ["FP16", "BF16"])
def test_half_floats_have_no_json_form(client, dtype):
    x, _ = identity_input(dtype)
    y = triton.InferRequestedOutput("y", binary_data=False)
    with pytest.raises(InferenceServerException, match="no JSON form") as e:
        client.infer(f"identity-{dtype.lower()}", [x], outputs=[y])
    assert e.value.status() == "400"


def two_inputs():
    a = triton.InferInput("a", [4], "FP32")
    a.set_data_from_numpy(np.array([1, 2, 3, 4], np.float32))
    b = triton.InferInput("b", [4], "INT32")
    b.set_data_from_numpy(np.array([10, 20, 30, 40], np.int32))
    return a, b


def test_several_inputs_and_outputs_in_any_order(client):
    a, b = two_inputs()
    result = client.infer("two-in-two-out", [b, a])
    np.testing.assert_array_equal(result.as_numpy("sum"), [11, 22, 33, 44])
    np.testing.assert_array_equal(result.as_numpy("product"), [10, 40, 90, 160])
    wanted = [triton.InferRequestedOutput("product"), triton.InferRequestedOutput("sum", binary_data=False)]
    result = client.infer("two-in-two-out", [a, b], outputs=wanted)
    assert [o["name"] for o in result.get_response()["outputs"]] == ["product", "sum"]
    np.testing.assert_array_equal(result.as_numpy("sum"), [11, 22, 33, 44])
    np.testing.assert_array_equal(result.as_numpy("product"), [10, 40, 90, 160])
    result = client.infer("two-in-two-out", [a, b], outputs=wanted[:1])
    assert result.as_numpy("sum") is None


def test_mixed_json_and_binary_inputs(client):
    a, b = two_inputs()
    b.set_data_from_numpy(np.array([10, 20, 30, 40], np.int32), binary_data=False)
    np.testing.assert_array_equal(client.infer("two-in-two-out", [a, b]).as_numpy("sum"), [11, 22, 33, 44])


@pytest.mark.parametrize("request_id", ["42", "äß\"\\\u2028", "x" * 1000])
def test_the_request_id_comes_back(client, request_id):
    x, _ = identity_input("FP32")
    if not request_id.isascii():
        # The client counts characters of its JSON where it should count bytes; without binary data it need not count.
        x, _ = identity_input("FP32", binary=False)
    assert client.infer("identity-fp32", [x], request_id=request_id).get_response()["id"] == request_id
    assert "id" not in client.infer("identity-fp32", [x]).get_response()


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("reply_coding", [None, "gzip", "deflate"])
def test_compression_both_ways(client, request_coding, reply_coding, binary):
    window = np.linspace(-5, 5, 900, dtype=np.float32).reshape(1, 100, 9)
    metadata = client.get_model_metadata("imu-motion")
    x = triton.InferInput(metadata["inputs"][0]["name"], [1, 100, 9], "FP32")
    x.set_data_from_numpy(window, binary_data=binary)
    outputs = [triton.InferRequestedOutput(o["name"], binary_data=binary) for o in metadata["outputs"]]
    plain = client.infer("imu-motion", [x], outputs=outputs)
    coded = client.infer(
        "imu-motion",
        [x],
        outputs=outputs,
        request_compression_algorithm=request_coding,
        response_compression_algorithm=reply_coding,
    )
    for o in metadata["outputs"]:
        np.testing.assert_array_equal(coded.as_numpy(o["name"]), plain.as_numpy(o["name"]))


def test_many_requests_at_once_get_their_own_answers(client):
    pending = []
    for i in range(40):
        x = triton.InferInput("x", [2, 3], "FP32")
        x.set_data_from_numpy(np.full((2, 3), i, np.float32))
        pending.append((i, client.async_infer("identity-fp32", [x], request_id=str(i))))
    for i, request in pending:
        result = request.get_result()
        assert result.get_response()["id"] == str(i)
        np.testing.assert_array_equal(result.as_numpy("y"), np.full((2, 3), i, np.float32))


def test_threads_with_clients_of_their_own(endpoint):
    def ask(i):
        with triton.InferenceServerClient(endpoint.address) as c:
            x = triton.InferInput("x", [2, 3], "INT32")
            x.set_data_from_numpy(np.full((2, 3), i, np.int32))
            return int(c.infer("identity-int32", [x]).as_numpy("y").max())

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(16))) == list(range(16))


def test_classes_instead_of_a_tensor(client):
    x = triton.InferInput("x", [2, 3], "FP32")
    x.set_data_from_numpy(np.array([[1, 9, 3], [4, 8, 6]], np.float32))
    for binary in (True, False):
        y = triton.InferRequestedOutput("y", class_count=2, binary_data=binary)
        result = client.infer("identity-fp32", [x], outputs=[y])
        assert result.get_output("y")["shape"] == [2]
        classes = [c.decode() if isinstance(c, bytes) else c for c in result.as_numpy("y").ravel()]
        assert classes == ["9.000000:1", "8.000000:4"]


def test_classes_carry_the_labels_of_the_model(client):
    metadata = client.get_model_metadata("imu-motion")
    name = metadata["inputs"][0]["name"]
    x = triton.InferInput(name, [1, 100, 9], "FP32")
    x.set_data_from_numpy(np.zeros((1, 100, 9), np.float32))
    scores = next(o["name"] for o in metadata["outputs"] if o["shape"][-1] == 12)
    y = triton.InferRequestedOutput(scores, class_count=3)
    result = client.infer("imu-motion", [x], outputs=[y]).as_numpy(scores)
    rows = [c.decode().split(":") for c in result]
    assert len(rows) == 3 and all(len(r) == 3 and r[2] for r in rows)
    values = [float(r[0]) for r in rows]
    assert values == sorted(values, reverse=True)


def test_client_side_timeouts_and_priorities_are_understood(client):
    x, values = identity_input("FP32")
    result = client.infer("identity-fp32", [x], timeout=5_000_000, priority=1, parameters={"mine": "yes", "n": 3})
    np.testing.assert_array_equal(result.as_numpy("y"), values)


def test_sequences_are_refused(client):
    x, _ = identity_input("FP32")
    with pytest.raises(InferenceServerException, match="stateless"):
        client.infer("identity-fp32", [x], sequence_id=7, sequence_start=True)


def test_statistics_count_what_happened(client):
    def stats():
        (one,) = client.get_inference_statistics("identity-int8")["model_stats"]
        return one

    x, _ = identity_input("INT8")
    before = stats()
    for _ in range(5):
        client.infer("identity-int8", [x])
    after = stats()
    assert after["inference_count"] - before["inference_count"] == 5
    for key in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        grown = {k: after["inference_stats"][key][k] - before["inference_stats"][key][k] for k in ("count", "ns")}
        assert grown["count"] == 5 and grown["ns"] >= 0, key
    assert after["inference_stats"]["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    assert after["last_inference"] >= before["last_inference"] > -1
    quantiles = after["inferd"]["quantiles"]["compute_infer"]
    assert 0 < quantiles["p50_ns"] <= quantiles["p95_ns"] <= quantiles["p99_ns"]
    everyone = {s["name"] for s in client.get_inference_statistics()["model_stats"]}
    assert {"identity-int8", "two-in-two-out", "imu-motion"} <= everyone


def test_the_repository_index_lists_every_model(client):
    index = {m["name"]: m for m in client.get_model_repository_index()}
    assert index["identity-fp32"] == {"name": "identity-fp32", "version": "1", "state": "READY", "reason": ""}


def test_a_model_is_loaded_and_unloaded(client):
    name = "identity-uint8"
    x, values = identity_input("UINT8")
    client.load_model(name)
    np.testing.assert_array_equal(client.infer(name, [x]).as_numpy("y"), values)
    client.unload_model(name)
    try:
        assert not client.is_model_ready(name)
        with pytest.raises(InferenceServerException, match="not loaded") as e:
            client.infer(name, [x])
        assert e.value.status() == "404"
        index = {m["name"]: m for m in client.get_model_repository_index()}
        assert index[name]["state"] == "UNAVAILABLE"
        with pytest.raises(InferenceServerException, match="no model"):
            client.unload_model(name)
    finally:
        client.load_model(name)
    assert client.is_model_ready(name)
    np.testing.assert_array_equal(client.infer(name, [x]).as_numpy("y"), values)


def test_a_load_cannot_bring_files_or_a_configuration(client):
    with pytest.raises(InferenceServerException, match="from its directory"):
        client.load_model("identity-fp32", config='{"max_batch_size": 8}')
    with pytest.raises(InferenceServerException, match="from its directory"):
        client.load_model("identity-fp32", config="{}", files={"file:1/model.onnx": b"x"})
    assert client.is_model_ready("identity-fp32")


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.get_system_shared_memory_status(),
        lambda c: c.register_system_shared_memory("r", "/r", 64),
        lambda c: c.unregister_system_shared_memory(),
        lambda c: c.get_cuda_shared_memory_status(),
        lambda c: c.get_trace_settings(),
        lambda c: c.update_trace_settings(settings={"trace_rate": "1"}),
        lambda c: c.get_log_settings(),
        lambda c: c.update_log_settings({"log_info": True}),
    ],
)
def test_what_is_not_there_says_so(client, call):
    with pytest.raises(InferenceServerException, match="this server has no") as e:
        call(client)
    assert e.value.status() == "501"


def test_shared_memory_tensors_are_refused(client):
    x = triton.InferInput("x", [2, 3], "FP32")
    x.set_shared_memory("region", 24)
    with pytest.raises(InferenceServerException, match="shared memory"):
        client.infer("identity-fp32", [x])
    x, _ = identity_input("FP32")
    y = triton.InferRequestedOutput("y")
    y.set_shared_memory("region", 24)
    with pytest.raises(InferenceServerException, match="shared memory"):
        client.infer("identity-fp32", [x], outputs=[y])


def test_strings_are_refused(client):
    x = triton.InferInput("x", [2, 3], "BYTES")
    x.set_data_from_numpy(np.array([[b"a"] * 3] * 2, dtype=object))
    with pytest.raises(InferenceServerException, match="datatype"):
        client.infer("identity-fp32", [x])


def test_a_real_window_of_the_default_model(client):
    """The golden input of the model, by the protocol: the answer is the recorded one."""
    from safetensors.numpy import load_file

    golden = load_file(IMU_MOTION / "golden.safetensors")
    metadata = client.get_model_metadata("imu-motion")
    name = metadata["inputs"][0]["name"]
    window = golden[f"0/in/{name}"]
    x = triton.InferInput(name, list(window.shape), np_to_triton_dtype(window.dtype))
    x.set_data_from_numpy(window)
    result = client.infer("imu-motion", [x])
    for o in metadata["outputs"]:
        np.testing.assert_allclose(result.as_numpy(o["name"]), golden[f"0/out/{o['name']}"], atol=1e-3)
