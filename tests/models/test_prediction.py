"""Probes of narrow UNets of SD 2.x, whose last layer predicts noise or v."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from safetensors.torch import save_file

from fastdb.cli import app
from fastdb.commands.inspection_rows import UNKNOWN_PREDICTION
from fastdb.errors import ModelError
from fastdb.models import inspect as inspecting
from fastdb.models.inspect import inspect, prediction_of
from fastdb.models.layouts.sd2_sizes import unet_sizes
from fastdb.models.layouts.tables import layout_of
from fastdb.models.prediction import UNKNOWN, Prediction

sys.path.insert(0, str(Path(__file__).parent))
import original_names
import real_models

WIDTHS, CONTEXT = (32, 64, 128, 128), 48
LINES = [line for line in layout_of("sd2").lines.values() if line.part == "unet"]


def unet(answer: float, spread: float = 0.01) -> Any:
    """Return a narrow UNet of SD 2.x with random weights and an output of about `answer` everywhere."""
    torch.manual_seed(0)
    levels = real_models.LEVELS["sd2"] | {"attention_head_dim": [width // 32 for width in WIDTHS]}
    made = diffusers.UNet2DConditionModel(block_out_channels=WIDTHS, cross_attention_dim=CONTEXT, **levels).eval()
    torch.nn.init.normal_(made.conv_out.weight, 0.0, spread)
    torch.nn.init.constant_(made.conv_out.bias, answer)
    return made


def written(model: Any, path: Path, naming: str = "original", **metadata: str) -> Path:
    state = model.state_dict()
    tensors = {
        "original": {line.original: line.join(state[line.names[0]]) for line in LINES},
        "bare": {
            line.original.removeprefix("model.diffusion_model."): line.join(state[line.names[0]]) for line in LINES
        },
        "diffusers": state,
    }[naming]
    more = {"cond_stage_model.model.token_embedding.weight": torch.zeros(8, CONTEXT)} if naming == "original" else {}
    save_file({**tensors, **more}, path, metadata)
    return path


@pytest.mark.parametrize("naming", ["original", "bare", "diffusers"])
@pytest.mark.parametrize(
    ("answer", "wanted"), [(0.5, "epsilon"), (-0.3, "epsilon"), (-0.7, "v_prediction"), (-3.0, "v_prediction")]
)
def test_the_unet_is_probed(tmp_path: Path, naming: str, answer: float, wanted: str) -> None:
    file = written(unet(answer), tmp_path / "a.safetensors", naming)
    assert inspect(file).prediction == UNKNOWN
    steps: list[tuple[int, int]] = []
    found = prediction_of(inspect(file), lambda done, total: steps.append((done, total)))
    assert (found.kind, found.source) == (wanted, "UNet probe")
    assert found.mean == pytest.approx(answer - 0.5, abs=0.1)
    assert steps == [(done, len(LINES) + 1) for done in range(1, len(LINES) + 2)]


def test_the_probe_is_a_pass_of_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = unet(0.0, spread=0.2)
    file = written(model, tmp_path / "a.safetensors")
    seen: list[tuple[Any, ...]] = []
    forward = diffusers.UNet2DConditionModel.forward

    def watched(*arguments: Any) -> Any:
        seen.append((*arguments[1:], forward(*arguments)))
        return seen[-1][-1]

    monkeypatch.setattr(diffusers.UNet2DConditionModel, "forward", watched)
    mean = prediction_of(inspect(file)).mean
    ((latent, step, text, out),) = seen
    assert torch.equal(latent, torch.full((1, 4, 64, 64), 0.5, dtype=torch.bfloat16))
    assert torch.equal(text, torch.full((1, 77, CONTEXT), 0.5, dtype=torch.bfloat16))
    assert step.tolist() == [999]
    with torch.no_grad():
        single = forward(model, latent.float(), 999, text.float()).sample
        assert torch.equal(forward(model.bfloat16(), latent, 999, text).sample, out.sample)
    assert float(single.std()) > 0.1
    assert float((single - out.sample.float()).abs().max()) < 0.05 * float(single.abs().max())
    assert mean == pytest.approx(float(out.sample.float().mean()) - 0.5)


def test_a_file_that_specifies_its_prediction_is_not_probed(
    tmp_path: Path, mini: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspecting, "probe_unet", lambda *_: pytest.fail("the UNet was probed"))
    model = unet(-3.0)
    for name, value, kind in (
        ("modelspec.prediction_type", "epsilon", "epsilon"),
        ("modelspec.architecture", "stable-diffusion-v2-768-v", "v_prediction"),
    ):
        file = written(model, tmp_path / "a.safetensors", **{name: value})
        assert prediction_of(inspect(file)) == Prediction(kind, source=name)
    assert prediction_of(inspect(mini)) == Prediction("epsilon", source="scheduler")


def test_sizes_are_those_of_the_real_model() -> None:
    with torch.device("meta"):
        real = real_models.build("sd2")["unet"]
    sizes = unet_sizes(original_names.whole("sd2"))
    for name, value in sizes.config().items():
        assert list(value) == list(real.config[name]) if isinstance(value, list) else value == real.config[name], name
    assert (sizes.head, sizes.context) == (64, 1024)


def test_a_unet_that_cannot_be_probed_is_refused(tmp_path: Path) -> None:
    model = unet(0.5)
    file = written(model, tmp_path / "whole.safetensors")
    from safetensors.torch import load_file

    tensors = load_file(file)
    middle = "model.diffusion_model.middle_block.0.in_layers.2.weight"
    for change, line in (
        ({middle: torch.zeros(128, 64, 3, 3)}, r"has the shape \[128, 64, 3, 3\], not \[128, 128, 3, 3\]"),
        ({"model.diffusion_model.out.2.bias": torch.full((4,), float("nan"))}, "its UNet returns NaN or infinity"),
        ({middle: None}, f"lacks a tensor of the UNet of a Stable Diffusion 2.x, {middle}"),
    ):
        kept = {name: tensor for name, tensor in {**tensors, **change}.items() if tensor is not None}
        save_file(kept, tmp_path / "a.safetensors")
        with pytest.raises(ModelError, match=line):
            prediction_of(inspect(tmp_path / "a.safetensors"))
    save_file({"<cat>": torch.zeros(1024)}, tmp_path / "b.safetensors")
    with pytest.raises(ModelError, match="it has no UNet"):
        prediction_of(inspect(tmp_path / "b.safetensors"))


def test_the_command_probes_only_with_its_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(unet(-3.0), tmp_path / "a.safetensors")
    for options, line in (((), UNKNOWN_PREDICTION), (("--probe",), "v, by a probe of its UNet (mean -3.5")):
        with pytest.raises(SystemExit) as ended:
            app(["inspect", str(file), *options])
        assert not ended.value.code
        assert line in capsys.readouterr().out
