"""The asyncio client of Triton. It asks for compression everywhere, but undoes it only in `infer`."""

import asyncio

import numpy as np
import tritonclient.http.aio as triton


def run(endpoint, talk):
    async def session():
        async with triton.InferenceServerClient(endpoint.address) as client:
            return await talk(client)

    return asyncio.run(session())


def test_descriptions_are_readable(endpoint):
    async def talk(client):
        assert await client.is_server_live() and await client.is_server_ready()
        assert await client.is_model_ready("imu-motion")
        # Longer than what a server would compress.
        return (
            await client.get_server_metadata(),
            await client.get_model_metadata("imu-motion"),
            await client.get_model_config("imu-motion"),
            await client.get_inference_statistics(),
            await client.get_model_repository_index(),
        )

    server, metadata, config, statistics, index = run(endpoint, talk)
    assert server["name"] == "inferd" and metadata["name"] == config["name"] == "imu-motion"
    assert len(statistics["model_stats"]) == len(index) > 10


def test_inference_with_and_without_binary_data(endpoint):
    window = np.linspace(-5, 5, 900, dtype=np.float32).reshape(1, 100, 9)

    async def talk(client):
        metadata = await client.get_model_metadata("imu-motion")
        results = []
        for binary in (True, False):
            x = triton.InferInput(metadata["inputs"][0]["name"], [1, 100, 9], "FP32")
            x.set_data_from_numpy(window, binary_data=binary)
            outputs = [triton.InferRequestedOutput(o["name"], binary_data=binary) for o in metadata["outputs"]]
            for coding in (None, "gzip", "deflate"):
                results.append(
                    await client.infer(
                        "imu-motion",
                        [x],
                        outputs=outputs,
                        request_compression_algorithm=coding,
                        response_compression_algorithm=coding,
                    )
                )
        return metadata, results

    metadata, results = run(endpoint, talk)
    for o in metadata["outputs"]:
        for r in results:
            np.testing.assert_allclose(r.as_numpy(o["name"]), results[0].as_numpy(o["name"]), rtol=1e-6)


def test_an_error_is_readable(endpoint):
    async def talk(client):
        x = triton.InferInput("x" * 2000, [1], "FP32")
        x.set_data_from_numpy(np.zeros(1, np.float32))
        try:
            await client.infer("identity-fp32", [x])
        except Exception as e:  # the client raises its own type, by the message we judge
            return str(e)

    assert "the model has no input" in run(endpoint, talk)
