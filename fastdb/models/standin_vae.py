"""Weights that make an AutoencoderKL shrink photos eightfold and grow them again smoothly, without training.

The residual branches are faint, so the network is a chain of its shortcut, down and up convolutions, which are
written here as a linear filter bank. Two tricks make its two normalisations with SiLU linear as well:

- a signal s travels as the pair (s, -s), and silu(s) - silu(-s) = s;
- each group of a GroupNorm also holds a large constant pair (+`STEADY`, -`STEADY`), so its mean is 0 and its
  deviation hardly depends on the picture: contrast survives.

A latent has luminance, two colour differences and a horizontal luminance detail, each with a deviation of about 2
over ordinary photos (half of that is what `SCALING_FACTOR` brings to 1).
"""

from __future__ import annotations

import torch

CHANNELS = (16, 24, 32, 32)
GROUPS = 4
SCALING_FACTOR = 0.5
STEADY = 8.0
"""Size of the constant pair; signals are below 1."""

LOG_VARIANCE = -6.0
"""Of the posterior: a deviation of 0.05, a fortieth of the latents' own."""

SIGNALS = (
    (0.3333, 0.3333, 0.3333),
    (0.5, 0.0, -0.5),
    (-0.25, 0.5, -0.25),
    (0.3333, 0.3333, 0.3333),
)
"""Luminance, red against blue, green against the others, and luminance again (for the detail), from R, G, B."""

GAINS = (5.0, 10.0, 28.0, 20.0)
"""From signal to latent; chosen on photos so that each latent's deviation is about 2."""

SHARPEN = 0.25
"""Undoes the blur of three smooth doublings, and their darkening along the edges, where they meet the padding."""

DETAIL = 0.7
"""Share of the horizontal detail in the decoded luminance."""

FAINT = 0.01
"""Size of what is random in it, against a unit signal."""

RANDOM = (
    "conv_in.weight",
    "conv_out.weight",
    "conv2.weight",
    "conv_shortcut.weight",
    ".conv.weight",
    "quant_conv.weight",
    "to_out.0.weight",
)
"""Layers whose random weights would be heard in the signal: all that write into it."""

Weights = dict[str, torch.Tensor]


def make_identity(weights: Weights) -> Weights:
    """Turn random weights of an AutoencoderKL with `CHANNELS` and `GROUPS` into the autoencoder described above.

    Args:
        weights: fp32 tensors under diffusers' names; changed in place and returned.
    """
    for name, weight in weights.items():
        if name.endswith(RANDOM):
            weight.mul_(FAINT)
    _encoder(weights)
    _decoder(weights)
    return weights


def _encoder(weights: Weights) -> None:
    """Channels 0, 1, 2 carry R, G, B and channel 3 the constant, down to pairs grouped for the last GroupNorm."""
    _centre(weights["encoder.conv_in.weight"])[:3, :3] += torch.eye(3)
    weights["encoder.conv_in.weight"][3] = 0.0
    weights["encoder.conv_in.bias"][3] = STEADY
    for level in (1, 2):
        _pass_on(weights[f"encoder.down_blocks.{level}.resnets.0.conv_shortcut.weight"])
    for level in (0, 1):
        _halve(weights[f"encoder.down_blocks.{level}.downsamplers.0.conv.weight"])

    last = weights["encoder.down_blocks.2.downsamplers.0.conv.weight"]
    size = CHANNELS[-1] // GROUPS
    for group, signal in enumerate(SIGNALS):
        left, right = (0.25, -0.25) if group == 3 else (0.25, 0.25)
        columns = torch.tensor([[left, right], [left, right]])
        first = group * size
        last[first : first + 4] = 0.0
        for channel, share in enumerate(signal):
            last[first, channel, :2, :2] = share * columns
            last[first + 1, channel, :2, :2] = -share * columns
        last[first + 2, 3, :2, :2] = 0.25
        last[first + 3, 3, :2, :2] = -0.25

    # The deviation of a group of 8 with two channels of size STEADY: STEADY x sqrt(2 / 8).
    deviation = STEADY * (2.0 / size) ** 0.5
    out = weights["encoder.conv_out.weight"]
    out[:4] = 0.0
    for group, gain in enumerate(GAINS):
        _centre(out)[group, group * size] = gain * deviation
        _centre(out)[group, group * size + 1] = -gain * deviation
    weights["encoder.conv_out.bias"][4:] = LOG_VARIANCE
    _centre(weights["quant_conv.weight"]).copy_(torch.eye(8))


def _decoder(weights: Weights) -> None:
    """Channels 0, 1, 2 carry R, G, B, channel 3 the detail, channel 4 the constant, up to pairs for the GroupNorm."""
    _centre(weights["post_quant_conv.weight"]).copy_(torch.eye(4))
    row = torch.tensor([-SHARPEN, 1.0 + 2.0 * SHARPEN, -SHARPEN])
    sharp = torch.outer(row, row)
    conv_in = weights["decoder.conv_in.weight"]
    conv_in[:5] = 0.0
    mixes = torch.linalg.inv(torch.tensor(SIGNALS[:3]))
    for colour in range(3):
        for latent in range(3):
            conv_in[colour, latent] = mixes[colour, latent] / GAINS[latent] * sharp
    _centre(conv_in)[3, 3] = 1.0 / GAINS[3]
    weights["decoder.conv_in.bias"][4] = STEADY

    for level in (0, 1, 2):
        _smooth(weights[f"decoder.up_blocks.{level}.upsamplers.0.conv.weight"])
    first = weights["decoder.up_blocks.0.upsamplers.0.conv.weight"]
    across = torch.outer(torch.tensor([0.25, 0.5, 0.25]), torch.tensor([-1.0, 0.0, 1.0]))
    first[:3, 3] = DETAIL * across

    _pass_on(weights["decoder.up_blocks.2.resnets.0.conv_shortcut.weight"])
    pairs = weights["decoder.up_blocks.3.resnets.0.conv_shortcut.weight"]
    for group in range(4):
        block = _centre(pairs)[4 * group : 4 * group + 4]
        block.zero_()
        block[0, group], block[1, group] = 1.0, -1.0
        block[2, 4], block[3, 4] = 1.0, -1.0
    deviation = STEADY * 0.5**0.5
    out = _centre(weights["decoder.conv_out.weight"])
    weights["decoder.conv_out.weight"][:, :12] = 0.0
    for colour in range(3):
        out[colour, 4 * colour] = deviation
        out[colour, 4 * colour + 1] = -deviation


def _centre(weight: torch.Tensor) -> torch.Tensor:
    """The middle tap of a square kernel: a view [out, in]."""
    middle = weight.shape[-1] // 2
    return weight[:, :, middle, middle]


def _pass_on(weight: torch.Tensor) -> None:
    """Hand the first channels on unchanged; the others stay random mixtures."""
    kept = min(weight.shape[0], weight.shape[1])
    weight[:kept] = 0.0
    _centre(weight)[:kept, :kept] = torch.eye(kept)


def _halve(weight: torch.Tensor) -> None:
    """Mean of each 2 x 2 square. Diffusers pads right and below only, so the taps are the first two, not the middle."""
    weight[:] = 0.0
    weight[:, :, :2, :2] = torch.eye(weight.shape[0])[:, :, None, None] / 4.0


def _smooth(weight: torch.Tensor) -> None:
    """After nearest doubling, (1 2 1) / 4 both ways makes it bilinear; the constant in channel 4 keeps its edges."""
    row = torch.tensor([0.25, 0.5, 0.25])
    weight[:] = torch.eye(weight.shape[0])[:, :, None, None] * torch.outer(row, row)
    weight[4, 4] = 0.0
    _centre(weight)[4, 4] = 1.0
