"""The model that a run trained last, for a pool of one's own."""

from pathlib import Path

from torch import nn

from dm2_fast.experiment import models
from dm2_fast.experiment.data.sets import load
from dm2_fast.experiment.folder.files import read_yaml
from dm2_fast.operations.mix import Normalize
from dm2_fast.selecting.samples import load_weights


def model_of_run(folder: Path, sample: tuple[int, ...]) -> tuple[nn.Module, Normalize]:
    """The model with its trained weights, and the (mean, std) that its images are normalised with.

    Args:
        folder: That of a finished run.
        sample: Shape of the samples that it is to run on.

    Raises:
        ValueError: the folder is not that of a finished run, or the samples have another shape than those of the run.
        FileNotFoundError: the data set of the run is gone.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise ValueError(f"cannot read run {folder}: no config.yaml")
    values = read_yaml(file)
    if not {"dataset", "model"} <= set(values):
        raise ValueError(f"cannot read run {folder}: config.yaml is not that of a run")
    if not (folder / "model.pt").is_file():
        raise ValueError(f"run {folder} has no model.pt yet: let it finish first")
    data = load(values["dataset"], Path(values.get("data_dir") or "data"))
    trained = tuple(data.x.shape[1:])
    if sample != trained:
        raise ValueError(f"the run was trained on samples of shape {trained}, and those of the pool are {sample}")
    model = models.build(
        values["model"], trained[0], (trained[1], trained[2]), len(data.classes), values.get("dropout", "head")
    )
    load_weights(model, folder / "model.pt")
    return model, data.normalize
