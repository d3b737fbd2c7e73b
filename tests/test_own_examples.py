import csv
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    for name in [name for name in sys.modules if name.split(".")[0] == "examples"]:
        monkeypatch.delitem(sys.modules, name)


def chosen(folder: str) -> list[str]:
    with (Path(folder) / "selected.csv").open() as lines:
        return [line["id"] for line in csv.DictReader(lines)]


def test_photographs_in_folders_give_file_names_and_pictures_and_a_second_round() -> None:
    from examples import own_photos

    own_photos.draw(Path("photos"), 14)
    own_photos.commands(size=32, budget=3)
    first, second = chosen("first"), chosen("second")
    assert len({*first, *second}) == 6
    assert all((Path("photos") / name).is_file() for name in first + second)
    assert Path("first/selected.png").exists()
    assert Path("first/label_studio.json").exists()


@pytest.mark.filterwarnings("ignore:lbfgs failed")
def test_embeddings_with_a_classifier_of_scikit_learn() -> None:
    from examples import own_embeddings

    picked = own_embeddings.main(rows=300, dimensions=16, budget=10)
    assert picked.ids is not None
    assert picked.ids[0] == f"document {picked.indices[0]}"


def test_two_inputs_and_a_dictionary() -> None:
    from examples import own_two_inputs

    assert len(own_two_inputs.main(rows=200, budget=10).indices) == 10


def test_a_table_with_a_random_forest() -> None:
    from examples import own_table

    picked = own_table.main(rows=300, columns=8, budget=10)
    assert picked.scores is not None
    assert (picked.scores[picked.indices] > np.median(picked.scores)).all()


def test_a_hundred_labels_and_rounds_filled_in_between() -> None:
    from examples import own_labels

    assert len(own_labels.main(images=80, labelled=20, rounds=2, budget=4, epochs=1)) == 3
    assert Path("mine/labels_01.csv").exists()


def test_labels_of_their_own() -> None:
    from examples import own_multilabel

    picked = own_multilabel.main(rows=200, budget=10)
    assert picked.scores is not None
    assert float(picked.scores.max()) <= 0.5
