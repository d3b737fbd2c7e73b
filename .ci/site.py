"""MkDocs hooks: README and CONTRIBUTING as pages, the reference from the docstrings, and equations as MathML."""

import re
from pathlib import Path
from typing import Any

import latex2mathml.converter
from mkdocs.structure.files import File

import dm2_fast

ROOT = Path(__file__).parent.parent
GROUPS = {
    "Choosing": ("select", "select_from", "Picked", "DM2Config"),
    "Operations": ("knn", "Neighbours", "Audit", "pairwise", "mix", "uncertainty", "linear_probe", "logits_of"),
    "Adversarial training": ("fgsm", "pair_loss"),
    "The loop": ("run", "RunConfig", "RoundEvent"),
    "A strategy of your own": ("Round", "Strategy", "Pass", "TrainingStep"),
}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that do not stand in docs/, with their links as they are from there."""
    for name, source in (("index.md", "README.md"), ("contributing.md", "CONTRIBUTING.md")):
        text = (ROOT / source).read_text().replace("](docs/", "](").replace("](CONTRIBUTING.md", "](contributing.md")
        for picture in re.findall(r"!\[.*?\]\((results/.*?)\)", text):
            files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
        files.append(File.generated(config, name, content=text))
    files.append(File.generated(config, "reference.md", content=_reference()))
    return files


def _reference() -> str:
    """A section per public name; one that no group has fails the build."""
    grouped = [name for names in GROUPS.values() for name in names]
    missing = set(dm2_fast.__all__) - {"strategies", *grouped}
    if missing:
        raise ValueError(f".ci/site.py groups no {', '.join(sorted(missing))}")
    lines = ["# API reference", "", "Every public name of `dm2_fast`, from its docstring."]
    for group, names in GROUPS.items():
        lines += ["", f"## {group}"]
        for name in names:
            lines += ["", f"::: dm2_fast.{dm2_fast._MODULES[name]}.{name}", "    options:", "      heading_level: 3"]
    return "\n".join(lines)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """$$...$$ and $`...`$, as GitHub shows them too, as MathML."""

    def block(found: re.Match[str]) -> str:
        return latex2mathml.converter.convert(found[1].strip(), display="block")

    markdown = re.sub(r"^\$\$\n(.*?)^\$\$$", block, markdown, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"\$`(.+?)`\$", lambda found: latex2mathml.converter.convert(found[1]), markdown)
