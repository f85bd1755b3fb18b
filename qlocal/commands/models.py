"""`qlocal models`: what the catalogue knows and what lies in the model folder."""

from __future__ import annotations

import argparse
import json
import shutil

from qlocal import catalog, hub
from qlocal.clean import clean_line
from qlocal.commands.options import human_bytes
from qlocal.config import load_settings
from qlocal.errors import UsageError

ACTIONS = ("list", "show", "disk", "rm")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", metavar="ACTION", nargs="?", choices=ACTIONS, default="list", help=", ".join(ACTIONS))
    parser.add_argument("name", metavar="NAME", nargs="?", help="the model, for show and rm")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    takes_name = args.action in ("show", "rm")
    if takes_name != (args.name is not None):
        raise UsageError(f"models {args.action} takes {'the NAME of a model' if takes_name else 'no NAME'}")
    {"list": _list, "show": _show, "disk": _disk, "rm": _remove}[args.action](args)
    return 0


def _list(args: argparse.Namespace) -> None:
    home = load_settings().home
    installed = {name: hub.total_size([path]) for name, path in catalog.installed(home).items()}
    known = catalog.entries()
    if args.json:
        print(json.dumps({"home": str(home), "installed": installed, "catalogue": sorted(known)}))
        return
    print(f"in {home}:" if installed else f"nothing in {home} yet")
    for name, size in installed.items():
        print(f"  {clean_line(name):40} {human_bytes(size):>10}")
    print("in the catalogue:")
    for name, entry in known.items():
        recommended = entry.recommended.get("format", "")
        shown = f"{recommended} {human_bytes(entry.sizes[recommended])}" if recommended in entry.sizes else ""
        print(f"  {name:40} {shown:>18}  {entry.licence}")


def _show(args: argparse.Namespace) -> None:
    entry = catalog.entry(args.name)
    config = entry.config()
    if args.json:
        values = {
            "name": entry.name,
            "repository": entry.repository,
            "licence": entry.licence,
            "context": entry.context,
            "yarn": dict(entry.yarn) if entry.yarn else None,
            "recommended": dict(entry.recommended),
            "sizes": dict(entry.sizes),
            "unpadded_sizes": dict(entry.unpadded_sizes),
            "config": dict(entry.raw_config),
        }
        print(json.dumps(values))
        return
    experts = f", {config.num_experts_per_tok} of {config.num_experts} experts" if config.num_experts else ""
    yarn = f", {entry.context * int(entry.yarn['factor'])} with YaRN" if entry.yarn else ""
    print(f"{entry.name}: {entry.repository}, {entry.licence} licence")
    print(
        f"{config.num_hidden_layers} layers of {config.hidden_size}, FFN {config.intermediate_size}{experts}, "
        f"{config.num_attention_heads} heads, {config.num_key_value_heads} for keys and values"
    )
    print(f"context {entry.context} tokens{yarn}")
    if entry.recommended:
        print(f"recommended: {entry.recommended.get('format')}: {entry.recommended.get('placement')}")
    for label, sizes in (("bytes of all tensors", entry.sizes), ("without padding the FFN", entry.unpadded_sizes)):
        if sizes:
            print(f"{label}:")
        for name, size in sizes.items():
            print(f"  {name:8} {size:>19,}  {size / 2**30:8.2f} GiB")


def _disk(args: argparse.Namespace) -> None:
    home = load_settings().home
    sizes = {path.name: hub.total_size([path]) for path in sorted(home.iterdir())} if home.is_dir() else {}
    free = shutil.disk_usage(next(p for p in (home, *home.parents) if p.exists())).free
    if args.json:
        print(json.dumps({"home": str(home), "models": sizes, "total": sum(sizes.values()), "free": free}))
        return
    for name, size in sizes.items():
        print(f"{human_bytes(size):>10}  {clean_line(name)}")
    print(f"{human_bytes(sum(sizes.values())):>10}  in {home}, {human_bytes(free)} free")


def _remove(args: argparse.Namespace) -> None:
    path, freed = hub.remove(args.name)
    done = {"deleted": str(path), "freed": freed}
    print(json.dumps(done) if args.json else f"{path} is deleted, {human_bytes(freed)} are free again")
