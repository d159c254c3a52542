"""How a pair is computed on this machine, for environment.json: kernels, compiled or as it is; captured or not."""

from __future__ import annotations

from specdec_lib.decoding.captured_loop import captured_graphs, graph_facts
from specdec_lib.kernels.build import kernel_facts
from specdec_lib.models.pair import Pair
from specdec_lib.models.runner import LanguageModel
from specdec_lib.models.tensor_parallel import devices_of


def engine_facts(pair: Pair) -> dict[str, object]:
    """What computes target and draft, and whether steps are captured, as known by now."""
    head = "kernels, block and output rows in 8 bits" if getattr(pair.draft, "fused", None) else "eager"
    engine: dict[str, object] = {
        "target": pair.target.engine,
        "draft": pair.draft.engine if isinstance(pair.draft, LanguageModel) else head,
        "tensor_parallel": devices_of(pair.target.model),
        "not_compiled": pair.target.why_not_compiled,
        "graphs": graph_facts(pair.target),
    }
    return {"engine": engine} | (kernel_facts() if pair.target.device.type == "cpu" else {})


def path_of(target: LanguageModel) -> str:
    """The way that this model's computations have taken: precision, engine, and whether steps are replays of graphs."""
    dtype = str(target.dtype).removeprefix("torch.")
    return f"{dtype}, {target.engine}{', captured steps' if captured_graphs(target) else ''}"


def compiler_of(target: LanguageModel) -> str:
    """What decides a cell's numbers next to the versions of packages; names several devices only."""
    if target.engine != "kernels":
        spread = f", tensor parallel over {number}" if (number := devices_of(target.model)) > 1 else ""
        return ("kernels none" if target.engine == "eager" else target.engine) + spread
    return f"kernels {kernel_facts()['kernels']}"
