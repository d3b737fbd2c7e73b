"""A model of two inputs, tokens and their mask, that returns a dictionary: its features are mixed.

python examples/own_two_inputs.py
"""

import argparse

import torch
from torch import Tensor, nn

import dm2_fast


class Reader(nn.Module):
    """A small model of texts, called and answering as language models do."""

    def __init__(self, words: int = 1000, width: int = 64, classes: int = 5) -> None:
        super().__init__()
        self.embedding, self.hidden, self.head = (
            nn.Embedding(words, width),
            nn.Linear(width, width),
            nn.Linear(width, classes),
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        held = attention_mask[:, :, None].to(self.head.weight.dtype)
        text = (self.embedding(input_ids) * held).sum(1) / held.sum(1)
        return {"logits": self.head(self.hidden(text).relu())}


class Texts(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Texts as tokenised data sets give them: a dictionary each, with more in it than the model takes."""

    def __init__(self, rows: int, length: int = 24) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(0, 1000, (rows, length), generator=generator)
        self.masks = torch.arange(length) < torch.randint(4, length + 1, (rows, 1), generator=generator)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, row: int) -> dict[str, object]:
        return {"text": f"text {row}", "input_ids": self.tokens[row], "attention_mask": self.masks[row]}


def main(rows: int = 10_000, budget: int = 50) -> dm2_fast.Picked:
    """Choose the next texts; tokens cannot be mixed, so the input of the head is."""
    torch.manual_seed(0)
    picked = dm2_fast.select(
        Reader(),
        Texts(rows),
        budget,
        options=dm2_fast.DM2Config(space="features"),
        entries=("input_ids", "attention_mask"),
    )
    print(f"rows {picked.indices[:5].tolist()} ... of {rows}")
    print(", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in picked.seconds.items()))
    return picked


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=10_000)
    main(parser.parse_args().rows)
