"""Initial values by a parameter's name: the scheme of OpenAI's CLIP (`CLIP.initialize_parameters`).

The deviations that it gives the text transformer serve both transformers here, where it leaves the image tower's to
torch's defaults. What it draws from torch's uniform default (patch embedding, convolutions) is normal with the same
variance, 1 / (3 fan-in); biases start at 0.
"""

from __future__ import annotations

import math

from modeling.clip.config import CLIPConfig


def initial(clip: CLIPConfig, name: str, shape: tuple[int, ...]) -> tuple[float, bool]:
    """(standard deviation, True) of a normal distribution, or (constant, False); `shape` is the global one."""
    if name == "log_scale":
        return clip.initial_log_scale, False
    if name == "logit_bias":
        return clip.initial_bias, False
    tower, rest = name.split(".", 1)
    if len(shape) == 1 and rest != "class_embedding":
        return _vector(rest), False
    if tower == "vision" and clip.vision == "resnet50":
        return _resnet(clip, rest, shape), True
    width, layers = (
        (clip.vision_width, clip.vision_layers) if tower == "vision" else (clip.text_width, clip.text_layers)
    )
    if rest == "patch_embedding.weight":
        return (3.0 * shape[1]) ** -0.5, True
    if rest == "token_embedding":
        return 0.02, True
    if tower == "text" and rest == "position_embedding":
        return 0.01, True
    if rest.endswith("linear_fc1.weight"):
        return (2.0 * width) ** -0.5, True
    if rest.endswith(("linear_proj.weight", "linear_fc2.weight")):
        return width**-0.5 / math.sqrt(2.0 * layers), True
    return width**-0.5, True  # attention's input, class token, image positions, projections


def _vector(rest: str) -> float:
    """Gains and variances start at 1, biases and means at 0; so does the last gain of a residual branch."""
    if rest.startswith("stages.") and rest.endswith(".norm3.weight"):
        return 0.0
    return 1.0 if ("norm" in rest and rest.endswith(("weight", "running_var"))) else 0.0


def _resnet(clip: CLIPConfig, rest: str, shape: tuple[int, ...]) -> float:
    if rest.startswith("pool."):
        return (32.0 * clip.vision_width) ** -0.5
    return float(3 * math.prod(shape[1:])) ** -0.5
