"""The chosen rows as tasks that Label Studio imports (its "Basic Label Studio JSON format")."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

FILE = "label_studio.json"


def write_tasks(
    folder: Path, rows: Sequence[int], ids: Sequence[str], scores: Sequence[float] | None, source: str, images: bool
) -> None:
    """Write a list of tasks, each with its `data` and, where the strategy has scores, its score as a prediction.

    Images are named as Label Studio's local storage names them, relative to the folder that it serves
    (LOCAL_FILES_DOCUMENT_ROOT), which is the pool's; other samples have their row and id only.
    """
    tasks: list[dict[str, Any]] = []
    for order, (row, name) in enumerate(zip(rows, ids, strict=True)):
        data: dict[str, Any] = {"order": order, "row": row, "id": name}
        if images:
            data = {"image": f"/data/local-files/?d={quote(name)}", **data}
        task: dict[str, Any] = {"data": data}
        if scores is not None:
            task["predictions"] = [{"model_version": source, "score": scores[order], "result": []}]
        tasks.append(task)
    (folder / FILE).write_text(json.dumps(tasks, indent=1, ensure_ascii=False) + "\n")
