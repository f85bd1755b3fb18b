"""`qlocal models`: what the catalogue knows and what lies in the model folder."""

from __future__ import annotations

import argparse
import json
import shutil

from qlocal import catalog, hub
from qlocal.clean import clean_line
from qlocal.commands.options import human_bytes
from qlocal.config import load_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    listing = actions.add_parser("list", help="all names: installed ones and the catalogue's")
    listing.add_argument("--json", action="store_true")
    show = actions.add_parser("show", help="one model: geometry, sizes, recommended placement")
    show.add_argument("name", metavar="NAME")
    show.add_argument("--json", action="store_true")
    disk = actions.add_parser("disk", help="how much the model folder takes")
    disk.add_argument("--json", action="store_true")
    remove = actions.add_parser("rm", help="delete a model from the model folder")
    remove.add_argument("name", metavar="NAME")


def run(args: argparse.Namespace) -> int:
    action = {"show": _show, "disk": _disk, "rm": _remove}.get(args.action, _list)
    action(args)
    return 0


def _list(args: argparse.Namespace) -> None:
    home = load_settings().home
    installed = {name: hub.total_size([path]) for name, path in catalog.installed(home).items()}
    known = catalog.entries()
    if getattr(args, "json", False):
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
    print(f"{path} is deleted, {human_bytes(freed)} are free again")
