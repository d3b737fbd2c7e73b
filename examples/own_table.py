"""A table and a random forest: a function is the model, and the columns, brought to one scale, are the features.

python examples/own_table.py
"""

import argparse

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import dm2_fast


def main(rows: int = 50_000, columns: int = 40, budget: int = 100) -> dm2_fast.Picked:
    """Columns of very different scales; 500 rows are labelled."""
    random = np.random.default_rng(0)
    table = random.standard_normal((rows + 500, columns)) * np.logspace(-2, 4, columns)
    labels = (table[:, 0] * 100 + table[:, 1] * 50 + random.standard_normal(len(table)) > 0).astype(int)
    scaler = StandardScaler().fit(table)
    scaled = scaler.transform(table).astype(np.float32)
    forest = RandomForestClassifier(50, random_state=0).fit(scaled[:500], labels[:500])

    def model(batch: Tensor) -> tuple[Tensor, Tensor]:
        return dm2_fast.logits_of(forest.predict_proba(batch.numpy())), batch

    picked = dm2_fast.select(model, scaled[500:], budget, batch_size=4096, ties="random")
    print(f"rows {picked.indices[:5].tolist()} ... of {rows}")
    print(", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in picked.seconds.items()))
    return picked


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=50_000)
    main(parser.parse_args().rows)
