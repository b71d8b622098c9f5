"""A hook of mkdocs: writes the help of every command into commands.md."""

import contextlib
import io
import os

from recipes import VERBS
from recipes.cli import main


def help_of(*arguments: str) -> str:
    """What a command prints."""
    os.environ["COLUMNS"] = "120"
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*arguments, "--help"])
    return out.getvalue().strip()


def on_page_markdown(markdown: str, page, **options) -> str:
    if page.file.src_uri != "commands.md":
        return markdown
    blocks = [f"```\n{help_of()}\n```"]
    for verb in ("fit", *VERBS):
        blocks.append(f"## supernet {verb}\n\n```\n{help_of(verb)}\n```")
    return markdown.replace("<!-- commands -->", "\n\n".join(blocks))
