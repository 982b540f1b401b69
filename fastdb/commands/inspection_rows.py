"""Text of an inspected model file, as a table."""

from __future__ import annotations

from pathlib import Path

from fastdb.formats.tensor_info import shown
from fastdb.models.detect import SD2
from fastdb.models.inspect import Inspection
from fastdb.models.prediction import PROBE_LIMIT, Prediction
from fastdb.reporting import format_bytes

SHOWN_METADATA = ("modelspec.title", "modelspec.architecture", "modelspec.trigger_phrase", "ss_base_model_version")
UNKNOWN_PREDICTION = "unknown: models for 512 px (epsilon) and 768 px (v) have the same tensors; --probe runs the UNet"
SOURCES = {
    "key v_pred": "by the key v_pred",
    "scheduler": "by the scheduler",
    "family": "as all models of its family",
    "inpainting": "as all inpainting models",
    "default": "the default of its family; the file does not specify it",
}
"""Text of the sources of a prediction that are no metadata."""


def inspection_rows(inspection: Inspection) -> list[tuple[str, str]]:
    """Return the label and the text of each finding."""
    what, dtypes = inspection.what, inspection.dtypes
    title = f"not a model, because {what.why}" if what.why else what.role
    count, size = sum(dtype.tensors for dtype in dtypes), sum(dtype.bytes for dtype in dtypes)
    texts = {
        "what": f"{title}, inpainting" if what.inpainting else title,
        "family": what.family or ("" if what.why else "unknown"),
        "detail": what.detail,
        "file": ", ".join(text for text in (inspection.kind, what.naming and f"{what.naming} naming") if text),
        "parts": ", ".join(what.parts),
        "prediction": _prediction(inspection),
        "precision": ", ".join(f"{dtype.dtype} ({_tensors(dtype.tensors)})" for dtype in dtypes),
        "EMA weights": _tensors(inspection.ema) if inspection.ema else "",
        "size": f"{_tensors(count)}, {format_bytes(size)}" if count else "",
        **{name: shown(inspection.metadata[name]) for name in SHOWN_METADATA if name in inspection.metadata},
        **{name: shown(str(inspection.values[name])) for name in ("global_step", "step") if name in inspection.values},
        "left out": _neutralised(inspection.neutralised),
    }
    return [(label, text) for label, text in texts.items() if text]


def _prediction(inspection: Inspection) -> str:
    prediction = inspection.prediction
    if prediction is None:
        return ""
    if not prediction.kind:
        return UNKNOWN_PREDICTION if inspection.what.family == SD2 else ""
    velocity = prediction.kind == "v_prediction" and prediction.source != "scheduler"
    return f"{'v' if velocity else prediction.kind}, {_source(prediction, inspection.path)}"


def _source(prediction: Prediction, path: Path) -> str:
    if prediction.source == "yaml":
        return f"by {shown(path.with_suffix('.yaml').name)} beside it"
    if prediction.mean is not None:
        return f"by a probe of its UNet (mean {prediction.mean:.2f}; below {PROBE_LIMIT:.0f} is v)"
    return SOURCES.get(prediction.source) or f"by {prediction.source}"


def _tensors(count: int) -> str:
    return "1 tensor" if count == 1 else f"{count} tensors"


def _neutralised(names: tuple[str, ...]) -> str:
    if not names:
        return ""
    rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(names[:5])}{rest}: named in the pickle, never run"
