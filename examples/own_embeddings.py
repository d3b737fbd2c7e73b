"""The next rows to label, from embeddings and a classifier of scikit-learn: no network at all.

python examples/own_embeddings.py
"""

import argparse

import numpy as np
from sklearn.linear_model import LogisticRegression

import dm2_fast


def main(rows: int = 20_000, dimensions: int = 256, budget: int = 50) -> dm2_fast.Picked:
    """Embeddings of ten clusters, 200 of them labelled; DM2 mixes embeddings and asks the classifier's linear head."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((10, dimensions))
    labels = random.integers(0, 10, rows + 200)
    embeddings = (centres[labels] + 1.5 * random.standard_normal((rows + 200, dimensions))).astype(np.float32)
    labelled, pool = embeddings[:200], embeddings[200:]

    classifier = LogisticRegression(max_iter=500).fit(labelled, labels[:200])
    asked = dm2_fast.Round.from_arrays(
        features=pool,
        head=(classifier.coef_, classifier.intercept_),
        labelled_features=labelled,
        labels=labels[:200],
        ids=[f"document {i}" for i in range(rows)],
    )
    picked = dm2_fast.select_from(asked, budget)
    assert picked.ids is not None
    print(f"{', '.join(picked.ids[:5])} ... of {rows}")
    print(", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in picked.seconds.items()))
    return picked


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000)
    main(parser.parse_args().rows)
