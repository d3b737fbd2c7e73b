from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dm2_fast
from dm2_fast import DM2Config, select
from dm2_fast.model.functions import run_module

M = 40
X = torch.rand(M, 6, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randint(0, 50, (M, 7), generator=torch.Generator().manual_seed(2))
MASK = torch.arange(7) < torch.randint(1, 8, (M, 1), generator=torch.Generator().manual_seed(3))
FEATURES = DM2Config.published(k=4, lam=0.3, space="features")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))
    with torch.no_grad():
        model[2].weight.mul_(8)
    return model


@dataclass
class Output:
    logits: Tensor


class Language(nn.Module):
    """A model of tokens and their mask; what it returns is for the test to say."""

    def __init__(self, returns: Any = Output) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head, self.returns = nn.Embedding(50, 8), nn.Linear(8, 3), returns
        nn.init.normal_(self.head.weight, std=3)

    def features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        held = attention_mask[:, :, None]
        return (self.embedding(input_ids) * held).sum(1) / held.sum(1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.returns(self.head(self.features(input_ids, attention_mask)))


class Whole(Language):
    """Takes the dictionary itself."""

    def forward(self, batch: dict[str, Tensor]) -> Any:  # type: ignore[override]
        return super().forward(batch["input_ids"], batch["attention_mask"])


def by_hand(features: Tensor, head: nn.Linear, neighbours: Tensor) -> Tensor:
    """Eq. 7 on features, and 1 - max softmax, in float64."""
    f = features.detach().double()
    mixed = 0.3 * f + 0.7 * f[neighbours].mean(1)
    return 1 - (mixed @ head.weight.double().T + head.bias.double()).softmax(1).amax(1).detach()


@pytest.mark.parametrize("kind", ["torch", "numpy", "dictionary"])
def test_a_function_is_a_model(kind: str) -> None:
    model = net()

    def function(batch: Tensor) -> Any:
        with torch.no_grad():
            logits = model(batch)
        return {"torch": logits, "numpy": logits.numpy(), "dictionary": {"logits": logits}}[kind]

    picked, expected = select(function, X, 5, "entropy"), select(model, X, 5, "entropy")
    assert torch.equal(picked.indices, expected.indices)
    assert picked.prepared == "off: a function runs as it is"


def test_a_function_may_return_features_and_is_mixed_at_its_input() -> None:
    model = net()

    def function(batch: Tensor) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            return model(batch).numpy(), model[:2](batch).numpy()

    picked, expected = (select(m, X, 5, options=DM2Config(k=4)) for m in (function, model))
    assert torch.equal(picked.indices, expected.indices)
    assert picked.neighbours is not None
    assert expected.neighbours is not None
    assert torch.equal(picked.neighbours, expected.neighbours)
    with pytest.raises(
        ValueError, match="a function has no head that runs on its own: pass the nn.Module that it calls"
    ):
        select(function, X, 5, options=FEATURES)


def test_a_function_without_features_is_refused_where_they_are_compared() -> None:
    with pytest.raises(ValueError, match=r"returns logits only, .* compares features: return \(logits, features\)"):
        select(net().eval().__call__, X, 5)


@pytest.mark.parametrize("model", [Language(), Language(lambda logits: {"loss": None, "logits": logits}), Whole()])
def test_tokens_with_masks_are_mixed_as_features(model: Language) -> None:
    pool = {"input_ids": TOKENS, "attention_mask": MASK}
    picked = select(model, pool, 6, options=FEATURES, batch_size=16)
    assert picked.neighbours is not None
    assert picked.scores is not None
    expected = by_hand(model.features(TOKENS, MASK), model.head, picked.neighbours)
    torch.testing.assert_close(picked.scores.double(), expected, rtol=0, atol=2e-6)
    assert torch.equal(picked.indices, picked.scores.sort(descending=True, stable=True).indices[:6])
    with pytest.raises(TypeError, match=r"since the pool has a dictionary of inputs: .*DM2Config\(space='features'\)"):
        select(model, pool, 6)


def test_a_data_set_of_dictionaries_gives_the_entries_that_are_named() -> None:
    samples = [{"text": "", "input_ids": i, "attention_mask": m, "label": 0} for i, m in zip(TOKENS, MASK, strict=True)]

    class Samples:
        def __len__(self) -> int:
            return M

        def __getitem__(self, row: int) -> Any:
            return samples[row]

    entries = ("input_ids", "attention_mask")
    picked = select(Language(), Samples(), 6, options=FEATURES, entries=entries)
    expected = select(Language(), {"input_ids": TOKENS, "attention_mask": MASK}, 6, options=FEATURES)
    assert torch.equal(picked.indices, expected.indices)


def test_tokens_alone_are_a_pool() -> None:
    model = nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(28, 3))
    select(model, TOKENS, 5, options=FEATURES)
    with pytest.raises(TypeError, match="since the pool holds torch.int64: mix their features"):
        select(model, TOKENS, 5)


class Two(nn.Module):
    """Two inputs by position, a dropout layer and a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right, self.drop, self.head = (
            nn.Linear(6, 5),
            nn.Linear(6, 5),
            nn.Dropout(0.3),
            nn.Linear(10, 3),
        )

    def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.drop(torch.cat([self.left(a), self.right(b)], 1)).relu())}


@pytest.mark.parametrize("strategy", ["entropy", "coreset", "badge", "bald", "alpha-mix", "noise-stability"])
def test_every_kind_of_pass_takes_two_inputs(strategy: str) -> None:
    labelled, labels = (X[:6], X[:6].flip(1)), torch.tensor([0, 1, 2, 0, 1, 2])
    picked = select(Two(), (X, X.flip(1)), 5, strategy, labelled=labelled, labels=labels)
    other = select(Two(), (X, X.flip(1)), 5, strategy, labelled=labelled, labels=labels, batch_size=16)
    assert len(set(picked.indices.tolist())) == 5
    if strategy not in ("badge", "noise-stability"):  # these follow the last bits, which the batch shape decides
        assert torch.equal(picked.indices, other.indices)


def test_a_mistake_within_the_model_is_not_taken_for_another_way_to_call_it() -> None:
    class Raising(nn.Module):
        calls = 0

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            self.calls += 1
            raise TypeError("their own")

    model = Raising()
    with pytest.raises(TypeError, match="their own"):
        run_module(model, (X, X))
    assert model.calls == 1


def test_features_are_mixed_as_the_linear_head_on_them_would() -> None:
    model = net()
    picked = select(model, X, 7, options=FEATURES)
    with torch.no_grad():
        features = model[:2](X)
    expected = select(model[2], features, 7, options=DM2Config.published(k=4, lam=0.3))
    assert torch.equal(picked.indices, expected.indices)
    assert picked.scores is not None
    assert expected.scores is not None
    torch.testing.assert_close(picked.scores, expected.scores, rtol=0, atol=1e-6)


def test_a_head_that_the_logits_do_not_come_from_is_refused() -> None:
    with pytest.raises(ValueError, match="the logits are not the output of the head alone: name the module"):
        select(net(), X, 5, options=FEATURES, head="0")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (3, "model is 3, which cannot be called: pass an nn.Module, or a function from a batch to logits"),
        (nn.Linear, r"model is the class Linear: pass a model that is made of it, Linear\(...\)"),
        (type("Forest", (), {"predict_proba": None})(), "pass lambda batch: dm2_fast.logits_of"),
        (lambda batch: batch.long(), "model must return floating point logits, got torch.int64: return scores, not cl"),
        (lambda batch: "no", "model must return an array of (n, C) logits, or (logits, features), got 'no'"),
        (lambda batch: {"out": batch}, "or (logits, features), got a dict without logits"),
        (lambda batch: (batch, batch, batch), "must return logits, or (logits, features), got a tuple of 3"),
    ],
)
def test_what_is_no_model_gets_an_error_with_the_remedy(model: Any, message: str) -> None:
    with pytest.raises(TypeError) as caught:
        select(model, X, 5, "entropy")
    assert message.replace("\\", "") in str(caught.value)


def test_a_model_that_ends_in_a_softmax_is_recognised_unless_the_caller_knows_better() -> None:
    model = nn.Sequential(net(), nn.Softmax(1))
    with pytest.raises(
        ValueError, match="the outputs of the model look like probabilities, .*pass the values before the"
    ):
        select(model, X, 5, "entropy")
    select(model, X, 5, "entropy", these_are_logits=True)
    with pytest.raises(ValueError, match=r"got probabilities \(non-negative, with sum 1\): leave the softmax out, or"):
        select(model, X, 5)
    with torch.no_grad():
        p = model(X)
    picked = select(lambda batch: dm2_fast.logits_of(model(batch)), X, 5, "entropy")
    assert torch.equal(picked.indices, select(net(), X, 5, "entropy").indices)
    assert picked.scores is not None
    torch.testing.assert_close(picked.scores, torch.special.entr(p).sum(1))
