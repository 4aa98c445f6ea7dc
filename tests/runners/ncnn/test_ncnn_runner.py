"""The target `ncnn`: ONNX models and ncnn's own files, samples one after another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, helper
from runtimes.small_onnx import difference, in_onnxruntime, normal, small_model

from edgeprune.errors import InputError
from edgeprune.exporters.conversions import CONVERSIONS, ConvertOptions
from edgeprune.runners.base import RunOptions
from edgeprune.runners.registry import open_runner, target_named
from edgeprune.runners.target import OpenOptions, Source

pytest.importorskip("ncnn")

from edgeprune.runners.ncnn.runner import NcnnRunner

node = helper.make_node


@pytest.fixture
def model() -> ModelProto:
    """Dynamic batch, two outputs."""
    nodes = [
        node("Conv", ["x", "w"], ["a"], group=4, pads=[1] * 4),
        node("Relu", ["a"], ["deep"]),
        node("GlobalAveragePool", ["deep"], ["m"]),
        node("Flatten", ["m"], ["flat"]),
        node("Gemm", ["flat", "h"], ["y"]),
    ]
    made = small_model(nodes, (1, 8, 6, 7), {"w": normal(16, 2, 3, 3), "h": normal(16, 5)}, outputs=("y", "deep"))
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    return made


def feeds(samples: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": normal(samples, 8, 6, 7, seed=seed)}


@pytest.mark.parametrize("samples", [1, 3])
def test_outputs_are_those_of_onnx_runtime(model: ModelProto, samples: int) -> None:
    with open_runner("ncnn", Source(model), OpenOptions(RunOptions(threads=2))) as runner:
        assert runner.output_names == ("y", "deep")
        given = feeds(samples)
        assert difference(in_onnxruntime(model, given), runner.run(given)) <= 1e-6
        run = runner.prepared(given)
        blobs = [run() for _ in range(2)]
        assert len(blobs[1]) == samples
        assert np.array_equal(np.array(blobs[0][0][0]), np.array(blobs[1][0][0]))
        assert runner.providers()["ncnn CPU"] == 5  # input, convolution, split, pooling, linear layer
    with pytest.raises(ValueError, match="closed"):
        runner.run(feeds(1))
    runner.close()


def test_inputs_may_lie_in_memory_in_any_way(model: ModelProto) -> None:
    """Of a copy that ncnn's Mat does not keep alive, garbage would be read, or nothing at all."""
    turned = np.ascontiguousarray(feeds(2)["x"].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert not turned.flags.c_contiguous
    with NcnnRunner(model) as runner:
        assert difference(in_onnxruntime(model, feeds(2)), runner.run({"x": turned})) <= 1e-6


def test_a_run_does_not_see_the_one_before(model: ModelProto) -> None:
    with NcnnRunner(model) as runner:
        first = runner.run(feeds(1, seed=1))
        runner.run(feeds(1, seed=2))
        again = runner.run(feeds(1, seed=1))
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_files_of_ncnn_run_as_they_are(model: ModelProto, tmp_path: Path) -> None:
    path = tmp_path / "model.param"
    for suffix, data in CONVERSIONS["ncnn"].convert(model, ConvertOptions()).items():
        path.with_suffix(suffix).write_bytes(data)
    with NcnnRunner(path) as runner:
        assert runner.input_names == ("x",)
        assert difference(in_onnxruntime(model, feeds(2)), runner.run(feeds(2))) <= 1e-6
    path.with_suffix(".bin").unlink()
    with pytest.raises(InputError, match="model.bin: no such file"):
        NcnnRunner(path)
    path.write_text("no network")
    with pytest.raises(InputError, match="model.param: ncnn .* cannot load it"):
        NcnnRunner(path)


def test_settings_are_those_of_ncnn(model: ModelProto) -> None:
    def off(*settings: tuple[str, str]) -> float:
        with NcnnRunner(model, RunOptions(provider_options=settings)) as runner:
            return difference(in_onnxruntime(model, feeds(1)), runner.run(feeds(1)))

    assert off(("use_winograd_convolution", "0"), ("lightmode", "0")) <= 1e-6
    with NcnnRunner(model, RunOptions(provider_options=(("use_winograd_convolution", "0"),))) as runner:
        assert runner._session is not None
        assert not runner._session._net.opt.use_winograd_convolution  # it was on
    with pytest.raises(InputError, match="gives garbage for convolutions in groups"):
        off(("use_bf16_storage", "1"))
    with pytest.raises(InputError, match="unknown setting of ncnn 'winograd'"):
        off(("winograd", "0"))
    with pytest.raises(InputError, match="ncnn's lightmode is 'yes'"):
        off(("lightmode", "yes"))


def test_what_is_wrong_with_inputs_is_said(model: ModelProto) -> None:
    with NcnnRunner(model) as runner:
        with pytest.raises(InputError, match="input 'x' is missing"):
            runner.run({})
        with pytest.raises(InputError, match="has shape"):
            runner.run({"x": normal(1, 8, 6, 6)})


def test_a_gather_is_refused_before_anything_runs() -> None:
    gather = small_model([node("Gather", ["x", "i"], ["y"], axis=1)], (1, 4, 2, 2), {"i": np.array([2, 0, 3, 1])})
    with pytest.raises(InputError, match="ncnn has no Gather"):
        open_runner("ncnn", Source(gather))


def test_times_of_layers_are_not_told(model: ModelProto) -> None:
    assert not target_named("ncnn").tells_layers
    with NcnnRunner(model) as runner:
        assert runner.profile_nodes(feeds(1), 3) == ()
        assert runner.original_node("Conv_a") == "Conv_a"
