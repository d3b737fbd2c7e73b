"""One colour for a method in every picture; DM2 is emphasised, random is grey, and what else is compared with black."""

from typing import Any

from dm2_fast import strategies

_DM2 = ("#d1495b", "#8c1c2b", "#f2847c", "#b5179e", "#ff9f1c", "#7a0c0c")
_OTHERS = (
    "#1b6ca8", "#2a9d8f", "#e9a820", "#7b5ea7", "#5fa55a", "#3fb6d3", "#a5673f", "#d58bc4", "#4c5f8a", "#9aab2f",
    "#00856f", "#c46210", "#6c8ebf", "#8f5d78", "#44803f", "#b0a04c", "#577590", "#a26769",
)  # fmt: skip
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (7, 2)))
GREY = "#555555"


def style(method: str, against: str | None = None) -> dict[str, Any]:
    """Colour, dashes and width of a method's line, a function of its name alone.

    A name that begins with that of a strategy, such as margin-kmeans, has the strategy's colour and other dashes.
    """
    if method == "full-data":
        return {"color": GREY, "linestyle": "-", "linewidth": 0.8}
    if method in (against, "random"):
        return {"color": GREY if method == "random" else "black", "linestyle": (0, (2, 1)), "linewidth": 1.8}
    known = [name for name in strategies.names() if not name.startswith("dm2")]
    of = max((name for name in known if method.startswith(name)), key=len, default=None)
    spread = sum(place * ord(letter) for place, letter in enumerate(method))
    if method.startswith("dm2"):
        if method == "dm2":
            return {"color": _DM2[0], "linestyle": "-", "linewidth": 2.4}
        place, number = divmod(spread, len(_DM2) - 1)
        return {"color": _DM2[1 + number], "linestyle": _DASHES[place % len(_DASHES)], "linewidth": 2.4}
    place = known.index(of) if of is not None else spread % 8  # colours that are far from each other
    dashes = _DASHES[(place // len(_OTHERS)) % 2] if method == of else _DASHES[1 + spread % 4]
    return {"color": _OTHERS[place % len(_OTHERS)], "linestyle": dashes, "linewidth": 1.2}


def emphasised(method: str, against: str | None) -> bool:
    """Whether a band is drawn around the method's mean: more of them could not be told apart."""
    return method.startswith("dm2") or method == against
