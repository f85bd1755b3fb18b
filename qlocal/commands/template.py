"""`qlocal template`: the chat template of a model, and whether it is one that its makers published."""

from __future__ import annotations

import argparse
import json

from qlocal import catalog
from qlocal.clean import clean
from qlocal.commands.options import add_model
from qlocal.config import load_settings
from qlocal.errors import TokenizerError
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.tokenizer.known_templates import known_as, sha256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", metavar="ACTION", choices=("show",), help="show")
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    path = catalog.resolve(args.model, load_settings().home)
    template = open_checkpoint(path).tokenizer().chat_template
    if template is None:
        raise TokenizerError(
            f"{path.name}: has no chat template", hint="It only continues text: use `/v1/completions`."
        )
    known = known_as(template)
    if args.json:
        print(json.dumps({"sha256": sha256(template), "known_as": known, "template": template}))
        return 0
    print(f"SHA-256 {sha256(template)}")
    print(
        f"known:  {known}" if known else "unknown: nobody has compared it with its makers'; read it before you trust it"
    )
    print(f"\n{clean(template)}")
    return 0
