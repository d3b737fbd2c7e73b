"""The heuristic in baal: its own loop on the digits, its wrappers and pool limits; mixed samples for its heuristics."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from baal.active.active_loop import ActiveLearningLoop
from baal.active.dataset import ActiveLearningDataset
from baal.active.heuristics import BALD, Certainty, Margin
from baal.bayesian.dropout import MCDropoutModule, patch_module
from baal.modelwrapper import ModelWrapper, TrainingArgs
from loops import BUDGET, POOL, ROUNDS, TEST, X, Y, network, start
from torch import nn
from torch.utils.data import Dataset

import dm2_fast
from dm2_fast.adapters.baal import Acquisition, mixed_probabilities

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")  # in their losses
STRATEGIES = ("dm2", "margin", "coreset", "badge")
TRAINED = ("ll4al", "vaal", "qbc")  # with the network, in a run of ours


class Digits(Dataset):
    """Pairs of a sample and a label, with a transform that a pool may replace."""

    def __init__(self, rows, transform=None) -> None:
        self.x, self.y = torch.from_numpy(X[rows]), torch.from_numpy(Y[rows])
        self.transform = transform

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row):
        return (self.x[row] if self.transform is None else self.transform(self.x[row])), self.y[row]


def active(rows=POOL, labelled=None, **others) -> ActiveLearningDataset:
    mask = np.zeros(len(rows), dtype=int)
    mask[start() if labelled is None else labelled] = 1
    return ActiveLearningDataset(Digits(rows, others.pop("transform", None)), mask, **others)


def wrapper(module: nn.Module) -> ModelWrapper:
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    arguments = TrainingArgs(optimizer, 16, 12, False, 0, criterion=nn.CrossEntropyLoss())
    return ModelWrapper(module, arguments)


def trained(dropout: float = 0.3, patch=lambda module: module) -> ModelWrapper:
    torch.manual_seed(0)
    made = wrapper(patch(network(dropout)))
    made.train_on_dataset(active())
    made.eval()
    return made


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_loop_on_the_digits(name: str) -> None:
    torch.manual_seed(0)
    dataset, model = active(), wrapper(network())
    first = copy.deepcopy(model.state_dict())
    acquisition = Acquisition(name, model=model, dataset=dataset, query_size=BUDGET)
    loop = ActiveLearningLoop(dataset, acquisition.inputs, acquisition, BUDGET)
    accuracies = []
    for _ in range(ROUNDS + 1):
        model.load_state_dict(first)
        model.train_on_dataset(dataset)
        model.eval()
        with torch.no_grad():
            accuracies.append((model.model(torch.from_numpy(X[TEST])).argmax(1).numpy() == Y[TEST]).mean())
        if name == "margin":
            predictions = model.predict_on_dataset(dataset.pool, 1, verbose=False)
            theirs = Margin()(predictions)[:BUDGET]
            ours, _ = acquisition.get_ranks(acquisition.inputs(dataset.pool))
            np.testing.assert_array_equal(ours[:BUDGET], theirs)
        before = dataset.labelled.copy()
        assert loop.step()
        assert (dataset.labelled & ~before).sum() == BUDGET
        assert before[dataset.labelled].sum() == before.sum()
    assert accuracies[-1] > accuracies[0]


@pytest.mark.parametrize("name", [name for name in dm2_fast.strategies.names() if name not in TRAINED])
@pytest.mark.parametrize(
    "patch", [lambda module: module, MCDropoutModule, patch_module], ids=["plain", "mc", "patched"]
)
def test_every_strategy_chooses_as_select_does_with_the_plain_network(name: str, patch, monkeypatch) -> None:
    monkeypatch.setattr("dm2_fast.strategies.graph_network.STEPS", 3)
    model, dataset = trained(patch=patch), active()
    plain = network(0.3)
    plain.load_state_dict({key.removeprefix("parent_module."): value for key, value in model.state_dict().items()})
    acquisition = Acquisition(name, model=model, dataset=dataset, query_size=7, seed=2)
    ranks, scores = acquisition.get_ranks(acquisition.inputs(dataset.pool))
    known, unknown = np.flatnonzero(dataset.labelled), np.flatnonzero(~dataset.labelled)
    expected = dm2_fast.select(
        plain, X[unknown], 7, name, labelled=X[known], labels=torch.from_numpy(Y[known]), row_ids=unknown, seed=2,
        round=len(known), ties="random",
    )  # fmt: skip
    np.testing.assert_array_equal(ranks[:7], expected.indices)
    assert sorted(ranks) == list(range(len(unknown)))
    assert (np.diff(scores[ranks[:7]]) <= 0).all()
    assert scores[ranks[7:]].max() <= scores[ranks[6]]
    if patch is MCDropoutModule:
        assert isinstance(model.model, MCDropoutModule)  # nothing happened to the model
        assert not any(type(part) is nn.Dropout for part in model.model.modules())


def test_the_pool_may_be_limited() -> None:
    model, dataset = trained(), active()
    acquisition = Acquisition("margin", model=model, dataset=dataset, query_size=9)
    seen: list[int] = []

    def inputs(pool):
        seen.append(len(pool))
        return acquisition.inputs(pool)

    limit = np.random.RandomState(0).choice(len(dataset.pool), 100, replace=False)
    rows = np.flatnonzero(~dataset.labelled)
    predictions = model.predict_on_dataset(dataset.pool, 1, verbose=False)[limit]
    expected = rows[limit[Margin()(predictions)[:9]]]
    before = dataset.labelled.copy()
    np.random.seed(0)
    assert ActiveLearningLoop(dataset, inputs, acquisition, 9, max_sample=100).step()
    assert seen == [100]
    assert {*np.flatnonzero(dataset.labelled & ~before)} == {*expected}
    few = torch.utils.data.Subset(dataset.pool, [3, 8, 20])
    assert ActiveLearningLoop(dataset, inputs, acquisition, 2).step(few)
    last = dataset.labelled.sum()
    tiny = Acquisition("dm2", model=model, dataset=dataset, query_size=50)
    assert ActiveLearningLoop(dataset, tiny.inputs, tiny, 50, max_sample=4).step()  # fewer than k and the budget
    assert dataset.labelled.sum() == last + 4


def test_the_labelled_samples_are_read_as_the_pool_is() -> None:
    noisy = active(transform=lambda x: x + 7, pool_specifics={"transform": None})
    model, plain = trained(), active()
    picks = []
    for dataset in (noisy, plain):
        acquisition = Acquisition("coreset", model=model, dataset=dataset, query_size=6)
        picks.append(acquisition.get_ranks(acquisition.inputs(dataset.pool))[0][:6])
    np.testing.assert_array_equal(*picks)


@pytest.mark.parametrize("form", ["array", "iterations", "generator", "probabilities"])
def test_predictions_of_their_wrapper_are_enough_for_uncertainty(form: str) -> None:
    model, dataset = trained(0.5, MCDropoutModule), active()
    predictions = model.predict_on_dataset(dataset.pool, 4, verbose=False)
    given = {
        "array": predictions[..., 0],
        "iterations": predictions,
        "generator": (block for block in np.array_split(predictions, 5)),
        "probabilities": torch.from_numpy(predictions).softmax(1).numpy(),
    }[form]
    again = given if form != "generator" else predictions
    ranks, _ = Acquisition("margin", query_size=12).get_ranks(given)
    np.testing.assert_array_equal(ranks[:12], Margin()(again)[:12])
    loop = ActiveLearningLoop(dataset, model.predict_on_dataset, Acquisition("entropy", query_size=5), 5, iterations=3)
    assert loop.step()


@pytest.mark.parametrize("options", [None, dm2_fast.DM2Config(k=3, lam=0.7), dm2_fast.DM2Config.published()])
def test_mixed_samples_with_their_certainty_are_dm2(options) -> None:
    model, dataset = trained(), active()
    ranks = Certainty()(mixed_probabilities(model, options, batch_size=100)(dataset.pool))
    unknown = np.flatnonzero(~dataset.labelled)
    as_published = replace(options or dm2_fast.DM2Config(), score="least-confidence", batch="highest")
    expected = dm2_fast.select(model.model, X[unknown], 10, "dm2", as_published)
    np.testing.assert_array_equal(ranks[:10], expected.indices)
    loop = ActiveLearningLoop(dataset, mixed_probabilities(model, options), Certainty(), 10)
    assert loop.step()
    assert {*np.flatnonzero(dataset.labelled)} - {*start()} == {*unknown[expected.indices]}


def test_mixed_samples_with_dropout_for_their_bald() -> None:
    model, pool = trained(0.5, MCDropoutModule), active().pool
    state = torch.random.get_rng_state()
    blocks = list(mixed_probabilities(model, iterations=6, batch_size=400)(pool))
    again = np.concatenate(list(mixed_probabilities(model, iterations=6, batch_size=400)(pool)))
    found = np.concatenate(blocks)
    assert found.shape == (len(pool), 10, 6)
    np.testing.assert_array_equal(found, again)
    assert torch.equal(state, torch.random.get_rng_state())
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert found.std(2).max() > 0.05
    other = np.concatenate(list(mixed_probabilities(model, iterations=6, batch_size=400, seed=1)(pool)))
    assert (other != found).any()
    assert len(BALD()(found)) == len(pool)
    one = active(labelled=np.arange(len(POOL) - 1)).pool
    assert next(mixed_probabilities(model)(one)).shape == (1, 10, 1)


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ValueError, match="strategy must be one of"):
        Acquisition("nothing")
    with pytest.raises(ValueError, match=r"needs the model and the data set: Acquisition\(model=, dataset=\)"):
        Acquisition("dm2").inputs(active().pool)
    with pytest.raises(ValueError, match="score, offset, space, recall and batch are not for mixed_probabilities"):
        mixed_probabilities(network(), dm2_fast.DM2Config(offset=3))
    with pytest.raises(ValueError, match="this strategy needs the head"):
        Acquisition("dm2").get_ranks(np.full((4, 2), 0.5))
