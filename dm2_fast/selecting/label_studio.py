"""The chosen rows as tasks that Label Studio imports (its "Basic Label Studio JSON format")."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torch import Tensor

FILE = "label_studio.json"


def write_tasks(
    folder: Path, rows: Sequence[int], ids: Sequence[str], scores: Tensor | None, all_scores: Tensor | None,
    source: str, images: Path | None,
) -> None:  # fmt: skip
    """Write a list of tasks, each with its `data` and, where the strategy has scores, its score as a prediction.

    Label Studio refuses a prediction whose score is not in [0, 1]. Scores that leave that range are brought into it, by
    the lowest and the highest of the pool; the scores themselves are in `data`.

    Args:
        folder: Where the file goes.
        rows, ids: The chosen rows, in order of choice, and what they are called.
        scores, all_scores: The scores of the chosen rows, (B,), and of all, (m,); None for a strategy without.
        source: What Label Studio shows as the version of the model.
        images: The folder that the ids are files of: Label Studio's local storage. Its files are named relative to the
            folder around it, LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT, which must be another than the storage. None for
            rows without files, which have their row and id only.
    """
    tasks: list[dict[str, Any]] = []
    unit = None if scores is None or all_scores is None else _in_unit_range(scores, all_scores).tolist()
    for order, (row, name) in enumerate(zip(rows, ids, strict=True)):
        data: dict[str, Any] = {"order": order, "row": row, "id": name}
        if images is not None:
            data = {"image": f"/data/local-files/?d={quote(f'{images.resolve().name}/{name}')}", **data}
        task: dict[str, Any] = {"data": data}
        if scores is not None and unit is not None:
            data["score"] = scores[order].item()
            task["predictions"] = [{"model_version": source, "score": unit[order], "result": []}]
        tasks.append(task)
    (folder / FILE).write_text(json.dumps(tasks, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _in_unit_range(scores: Tensor, all_scores: Tensor) -> Tensor:
    scores, lowest, highest = scores.double(), all_scores.min().double(), all_scores.max().double()
    if lowest >= 0 and highest <= 1:
        return scores
    return (scores - lowest) / (highest - lowest) if highest > lowest else 0 * scores
