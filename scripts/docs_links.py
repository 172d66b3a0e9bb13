"""A hook of mkdocs: links to files outside docs/, which a reader on GitHub follows, become plain text on the site."""

import re
from pathlib import Path

LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)\s]+)\)")


def on_page_markdown(markdown: str, page, config, files) -> str:
    docs = Path(config["docs_dir"]).resolve()
    here = Path(page.file.abs_src_path).parent

    def inside(link: re.Match) -> str:
        target = (here / link[3].partition("#")[0]).resolve()
        return link[0] if target.is_relative_to(docs) else link[2]

    return LINK.sub(inside, markdown)
