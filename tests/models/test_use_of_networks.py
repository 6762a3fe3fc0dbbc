"""Every published network is called, saved, compiled and cast like a UNet of diffusers."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusers_pfgm import DhariwalUNet, NCSNpp, SongUNet

SMALL: dict[str, Any] = {"sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1}
NCSN: dict[str, Any] = {"fir": True, "embedding_type": "fourier", "attn_resolutions": (4,)}
NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "DDPM++ of PFGM": (NCSNpp, {"attn_resolutions": (4,)}),
    "NCSN++ of PFGM": (NCSNpp, NCSN | {"progressive_input": "residual"}),
    "NCSN++ of the VE SDE": (
        NCSNpp,
        NCSN
        | {"progressive_input": "input_skip", "progressive": "output_skip", "timestep_scale": 0.5, "output_scale": -1},
    ),
    "DDPM++ of EDM": (SongUNet, {"attn_resolutions": (4,), "model_channels": 16, "num_class_embeds": 3}),
    "NCSN++ of EDM": (
        SongUNet,
        {
            "model_channels": 16,
            "embedding_type": "fourier",
            "encoder_type": "residual",
            "resample_filter": (1, 3, 3, 1),
            "channel_mult_noise": 2,
        },
    ),
    "ADM of EDM": (DhariwalUNet, {"attn_resolutions": (4,), "model_channels": 16, "num_class_embeds": 3}),
}
each_network = pytest.mark.parametrize("name", NETWORKS)


def make(name: str) -> Any:
    network_class, options = NETWORKS[name]
    torch.manual_seed(0)
    return network_class(**SMALL, **options).eval()


def classes(network: Any) -> dict[str, torch.Tensor]:
    return {"class_labels": torch.tensor([0, 2])} if network.config.get("num_class_embeds") else {}


@each_network
def test_call_and_save(name: str, tmp_path: Path) -> None:
    network, x = make(name), torch.randn(2, 3, 8, 8)
    options = classes(network)
    with torch.no_grad():
        outputs = [network(x, t, **options).sample for t in (0.5, torch.tensor(0.5), torch.tensor([0.5, 0.5]))]
        assert torch.equal(outputs[0], network(x, 0.5, return_dict=False, **options)[0])
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    network.save_pretrained(tmp_path)
    loaded = type(network).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.equal(loaded(x, 0.5, **options).sample, outputs[0])


@each_network
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name: str, dtype: torch.dtype, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Fourier features of a large |ln σ|, which rounded frequencies would change by more than a radian.
    network, x, t = make(name), torch.randn(2, 3, 8, 8), torch.tensor([0.004, 90.0])
    options = classes(network)
    with torch.no_grad():
        expected = network(x, t, **options).sample
    network.save_pretrained(tmp_path)
    caplog.set_level(logging.CRITICAL)  # diffusers warns at every cast by `to`
    for half in (network.to(dtype), type(network).from_pretrained(tmp_path, torch_dtype=dtype)):
        with torch.no_grad():
            output = half(x.to(dtype), t, **options).sample
        assert output.dtype == dtype and (output - expected).abs().max() < 0.03 * expected.abs().max()


@each_network
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    network, x = make(name), torch.randn(2, 3, 8, 8)
    gradients = []
    for _ in range(2):
        network.zero_grad()
        network(x, torch.tensor([0.3, 0.7])).sample.square().mean().backward()
        gradients.append({key: weight.grad for key, weight in network.named_parameters() if weight.grad is not None})
        network.enable_gradient_checkpointing()
        assert network.is_gradient_checkpointing
    assert gradients[0].keys() == gradients[1].keys()
    assert len(gradients[0]) >= len([*network.parameters()]) - 2  # without the embedding of classes
    for key, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][key], rtol=1e-4, atol=1e-7), key


@each_network
def test_gradient_checkpointing_by_a_function_of_the_user(name: str) -> None:
    network, calls = make(name), []

    def checkpoint(function: Any, *inputs: torch.Tensor) -> torch.Tensor:
        calls.append(function)
        return torch.utils.checkpoint.checkpoint(function, *inputs, use_reentrant=False)

    network.enable_gradient_checkpointing(checkpoint)
    network(torch.randn(2, 3, 8, 8), 0.5).sample.sum().backward()
    assert len(calls) >= 8  # the blocks of two levels


@pytest.mark.parametrize("name", ["DDPM++ of EDM", "ADM of EDM"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_class_labels_may_be_any_integers(name: str, dtype: torch.dtype) -> None:
    network, x, labels = make(name), torch.randn(2, 3, 8, 8), torch.tensor([0, 2])
    with torch.no_grad():
        outputs = [network(x, 0.5, class_labels=each).sample for each in (labels, labels.to(dtype))]
    assert torch.equal(*outputs)


def test_class_labels_need_classes() -> None:
    with pytest.raises(ValueError, match=r"`class_labels` must be integers, but are torch\.float32"):
        make("ADM of EDM")(torch.randn(2, 3, 8, 8), 0.5, class_labels=torch.tensor([0.0, 1.7]))
    for name in ("NCSN++ of EDM", "NCSN++ of PFGM"):
        with pytest.raises(ValueError, match="`class_labels` were passed, but the network has no classes"):
            make(name)(torch.randn(2, 3, 8, 8), 0.5, torch.tensor([0, 2]))


@pytest.mark.parametrize("network", [NCSNpp, SongUNet, DhariwalUNet])
def test_images_must_be_square(network: Any) -> None:
    with pytest.raises(ValueError, match=r"`sample_size` must be a whole number, .* square images, but is \(8, 8\)"):
        network(sample_size=(8, 8))


@pytest.mark.slow
@each_network
def test_compile_without_graph_breaks(name: str) -> None:
    network, x, t = make(name), torch.randn(2, 3, 8, 8), torch.tensor([0.5, 3.0])
    torch.compiler.reset()
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    with torch.no_grad():
        expected = network(x, t, **classes(network)).sample
        assert torch.allclose(compiled(x, t, **classes(network)).sample, expected, atol=1e-6)


@each_network
def test_channels_last(name: str) -> None:
    network, x, t = make(name), torch.randn(2, 3, 8, 8), torch.tensor([0.5, 3.0])
    with torch.no_grad():
        expected = network(x, t, **classes(network)).sample
        network.to(memory_format=torch.channels_last)
        output = network(x.contiguous(memory_format=torch.channels_last), t, **classes(network)).sample
    assert torch.allclose(output, expected, atol=1e-5 * expected.abs().max().item())


class NoFloat64(TorchDispatchMode):
    """A mode in which an operation that returns float64 is an error, as on MPS."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            assert not (isinstance(tensor, torch.Tensor) and tensor.dtype == torch.float64), func
        return result


@each_network
def test_no_float64(name: str) -> None:
    network, x = make(name).train(), torch.randn(2, 3, 8, 8)
    with NoFloat64():
        for t in (0.5, torch.tensor([0.5, 3.0])):
            network(x, t, **classes(network)).sample.square().mean().backward()


def test_errors_name_the_option() -> None:
    for network_class in (NCSNpp, SongUNet, DhariwalUNet):
        with pytest.raises(ValueError, match="`sample_size` must be a multiple of 2 for 2 levels, but is 9"):
            network_class(9, block_out_channels=(16, 32))
    for options, message in (
        ({"embedding_type": "learned"}, "`embedding_type` must be one of"),
        ({"progressive_input": "skip"}, "`progressive_input` must be one of"),
        ({"progressive": "residual"}, "`progressive` must be one of"),
        ({"progressive_input": "residual"}, "`fir` is False. Set `fir=True`"),
        ({"progressive": "output_skip"}, "`fir` is False. Set `fir=True`"),
    ):
        with pytest.raises(ValueError, match=message):
            NCSNpp(**options)
    with pytest.raises(ValueError, match="`embedding_type` must be one of"):
        SongUNet(embedding_type="learned")
    with pytest.raises(ValueError, match="`encoder_type` must be one of"):
        SongUNet(encoder_type="skip")
