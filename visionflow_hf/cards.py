"""Cards on the Hub: where their templates are, and edits that change one part of a card and keep every other byte."""

import re
import textwrap
from pathlib import Path

import yaml

PACKAGE = Path(__file__).parent
METADATA = re.compile(r"\A(\ufeff?\s*---[ \t]*\r?\n)(.*?)(\r?\n---[ \t]*(?:\r?\n|\Z))", re.DOTALL)
RESULTS = re.compile(r"(<!-- begin results[^>]*-->\r?\n)(.*?)(\r?\n<!-- end results -->)", re.DOTALL)


def card_template(name: str) -> Path:
    """The path of a template: the wheel keeps them in visionflow_hf/card, a checkout at its root."""
    return PACKAGE / "card" / name if (PACKAGE / "card").is_dir() else PACKAGE.parent / name


def with_metadata(card: str, keys: tuple[str, ...], value) -> str:
    """The card with one entry of its YAML metadata set or added; comments, order and layout of the rest stay.

    Args:
        card: the text of the file, line ends as they are.
        keys: the path to the entry, such as `("visionflow", "results")`; all but the last must exist.

    Raises:
        ValueError: the card has no metadata in block style with these keys.
    """
    parts = METADATA.match(card)
    node = yaml.compose(parts[2], Loader=yaml.SafeLoader) if parts else None
    *parents, last = keys
    for key in parents:
        node = _entries(node).get(key, (None, None))[1]
    entries = _entries(node)
    if not entries:
        raise ValueError(f"the card has no metadata for {'.'.join(keys)}")
    head = parts[2]
    column = node.value[0][0].start_mark.column
    text = yaml.safe_dump({last: value}, sort_keys=False, allow_unicode=True, width=10**6).rstrip("\n")
    text = textwrap.indent(text, " " * column)
    if "\r\n" in head:
        text = text.replace("\n", "\r\n")
    if last in entries:
        key, old = entries[last]
        start, end = key.start_mark.index, _end(head, key, old)
        head = head[:start] + text.lstrip(" ") + head[end:]
    else:
        end = _end(head, *node.value[-1])
        newline = re.compile(r"\r?\n|\Z").search(head, end).start()  # behind a comment in the same line
        head = head[:newline] + ("\r\n" if "\r\n" in card else "\n") + text + head[newline:]
    return parts[1] + head + parts[3] + card[parts.end() :]


def with_results(card: str, section: str) -> str:
    """The card with other text between its two lines `<!-- begin results ... -->` and `<!-- end results -->`.

    Raises:
        ValueError: the card does not have these lines.
    """
    found = RESULTS.search(card)
    if found is None:
        raise ValueError("the card has no lines `<!-- begin results -->` and `<!-- end results -->`")
    section = section.replace("\n", "\r\n") if "\r\n" in found[1] else section
    return card[: found.start(2)] + section + card[found.end(2) :]


def results_of(card: str) -> str:
    """What stands between these two lines."""
    return RESULTS.search(card)[2]


def _entries(node: yaml.Node | None) -> dict[str, tuple[yaml.Node, yaml.Node]]:
    """Key and value of each entry of a mapping in block style; empty for anything else."""
    if not isinstance(node, yaml.MappingNode) or node.flow_style:
        return {}
    return {key.value: (key, value) for key, value in node.value}


def _end(head: str, key: yaml.Node, value: yaml.Node) -> int:
    """Where an entry ends. The end mark of a collection in block style lies behind the comments that follow it."""
    while isinstance(value, yaml.CollectionNode) and not value.flow_style and value.value:
        last = value.value[-1]
        value = last[1] if isinstance(last, tuple) else last
    return max(key.end_mark.index + 1, len(head[: value.end_mark.index].rstrip()))
