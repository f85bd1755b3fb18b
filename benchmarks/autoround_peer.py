"""Make AutoRound's 4-bit file of a model from our calibration windows, to be measured by `quantize_quality.py`.

    autoround_peer.py SOURCE OUT --text FILE [FILE ...] --iters N [--samples 64] [--seq-len 512] [--batch-size 8]

Run it with an interpreter that has the package `auto-round`; nothing of qlocal is needed. The windows are those of
`quantize --raw`: the first tokens of the joined texts. All that is not an argument is the package's own default. Prints
one JSON object with what was asked for, the package's version, and the seconds that it took.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    """Quantize and print."""
    arguments = _arguments()
    started = time.monotonic()
    sys.path.pop(0)  # this folder, whose kernels.py transformers would take for a package
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(arguments.source)
    model = AutoModelForCausalLM.from_pretrained(arguments.source, dtype=torch.bfloat16)
    text = "".join(path.read_text(encoding="utf-8") for path in arguments.text)
    ids = _first_ids(tokenizer(text, add_special_tokens=False).input_ids, arguments.samples * arguments.seq_len)
    windows = torch.tensor(ids).view(arguments.samples, arguments.seq_len)
    peer = AutoRound(
        model,
        tokenizer,
        scheme="W4A16",
        group_size=arguments.group_size,
        sym=not arguments.asym,
        dataset=list(windows.split(arguments.batch_size)),
        iters=arguments.iters,
        nsamples=arguments.samples,
        seqlen=arguments.seq_len,
        batch_size=arguments.batch_size,
        device_map="cpu",
    )
    peer.quantize_and_save(str(arguments.out), format=arguments.format)
    used = os.times()  # compilers that the package starts are children
    processor_s = used.user + used.system + used.children_user + used.children_system
    taken = {"wall_s": round(time.monotonic() - started, 1), "processor_s": round(processor_s, 1)}
    asked = {name: str(value) for name, value in vars(arguments).items() if name not in ("source", "out", "text")}
    print(json.dumps({"auto-round": version("auto-round"), "torch": torch.__version__} | asked | taken))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--iters", type=int, required=True, help="steps a decoder layer; the package's default is 200")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8, help="windows a step")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--asym", action="store_true")
    parser.add_argument("--format", default="auto_gptq", help="auto_gptq or auto_awq")
    return parser.parse_args()


def _first_ids(ids: list[int], count: int) -> list[int]:
    if len(ids) < count:
        raise SystemExit(f"the texts have {len(ids)} tokens, {count} are asked for")
    return ids[:count]


if __name__ == "__main__":
    main()
