"""MkDocs hooks: README and CONTRIBUTING as pages, the reference from the docstrings, and equations as MathML."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from operator import attrgetter
from pathlib import Path
from typing import Any

import docstring_parser
import latex2mathml.converter
from mkdocs.structure.files import File
from site_docstrings import spaced

import dm2_fast

ROOT = Path(__file__).parent.parent
GROUPS = {
    "Choosing": ("select", "select_from", "Picked", "DM2Config"),
    "Operations": ("knn", "Neighbours", "Audit", "pairwise", "mix", "uncertainty", "linear_probe", "logits_of"),
    "Adversarial training": ("fgsm", "pgd", "pair_loss"),
    "Many processes": ("distributed.select", "distributed.knn"),
    "The loop": ("run", "RunConfig", "RoundEvent"),
    "A strategy of your own": ("Round", "Strategy", "Pass", "TrainingStep"),
}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that do not stand in docs/, with their links as they are from there."""
    for name, source in (("index.md", "README.md"), ("contributing.md", "CONTRIBUTING.md")):
        text = (ROOT / source).read_text().replace("](docs/", "](").replace("](CONTRIBUTING.md", "](contributing.md")
        files.append(File.generated(config, name, content=text))
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for picture in re.findall(r"!\[.*?\]\((?:\.\./)?(results/.*?)\)", page.read_text()):
            files.append(File.generated(config, picture, abs_src_path=str(ROOT / picture)))
    files.append(File.generated(config, "reference.md", content=_reference()))
    return files


def _reference() -> str:
    """A section per public name; tests/test_documents.py sees one that no group has."""
    lines = ["# API reference", "", "Every public name of `dm2_fast`, from its docstring."]
    for group, names in GROUPS.items():
        lines += ["", f"## {group}"]
        for name in names:
            found = attrgetter(name)(dm2_fast)
            lines += ["", f"::: {found.__module__}.{found.__qualname__}", "    options:", "      heading_level: 3"]
            lines += [f"      heading: {name}", f"      toc_label: {name}"]
    return "\n".join(lines)


def _definitions() -> str:
    """A section per strategy: the docstrings of its file and of what chooses, and its options with their defaults."""
    lines = ["", "## Definitions"]
    for module in dm2_fast.strategies._MODULES:
        strategy, options = module.STRATEGY, module.STRATEGY.options
        own = vars(module).get("choose")
        chooses = inspect.getdoc(own).partition("\nRaises:")[0] if own else ""
        lines += ["", f"### {strategy.name}", "", spaced(inspect.getdoc(module)), "", spaced(chooses), ""]
        if options is not None and own is not None:
            defaults = {item.name: item.default for item in fields(options)}
            for option in docstring_parser.parse(options.__doc__).params:
                told = " ".join(option.description.split())
                lines.append(f"- `{option.arg_name}` (default: {defaults[option.arg_name]}): {told}")
    return "\n".join(lines)


def _pages(nav: list[Any]) -> Iterator[tuple[str, str]]:
    """The file and the title of every page, those of groups too."""
    for entry in nav:
        for title, page in entry.items():
            yield from _pages(page) if isinstance(page, list) else [(page, title)]


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Links by titles; the definitions of the strategies; $$...$$ and $`...`$, as GitHub shows them too, as MathML."""
    titles = dict(_pages(config.nav))
    markdown = re.sub(r"(!\[.*?\]\()\.\./(results/)", r"\1\2", markdown)
    markdown = re.sub(
        r"\[(?:docs/)?([\w-]+\.md)\]\(", lambda found: f"[{titles.get(found[1].lower(), found[1])}](", markdown
    )
    if page.file.src_uri == "strategies.md":
        markdown += _definitions()

    def block(found: re.Match[str]) -> str:
        return latex2mathml.converter.convert(found[1].strip(), display="block")

    markdown = re.sub(r"^\$\$\n(.*?)^\$\$$", block, markdown, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"\$`(.+?)`\$", lambda found: latex2mathml.converter.convert(found[1]), markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Short code in a sentence is not broken at its hyphens."""
    return re.sub(r"<code>([^<\n]{1,32})</code>", r'<code class="short">\1</code>', html)
