"""Run by the interpreter that has a peer's package: makes a quantized folder with it. No import of this project.

    peer.py versions PACKAGE [PACKAGE ...]    prints the versions of those that it has, as JSON in its last line
    peer.py quantize REQUEST.json             writes the folder that the request names

A request: package, source, out, format (awq, gptq), checkpoint_format (gemm, gptq or gptq_v2), group_size, symmetric,
desc_act, shard_bytes, device (null: the package's own choice), windows (lists of token ids). The working folder may be
littered. Standard input is a pipe that whoever asks holds open: this process ends with it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import Any


def main() -> None:
    """Do what the command line says."""
    del sys.path[0]  # the folder of this file: no package of the peer's may find its neighbours
    if sys.argv[1] == "versions":
        print(json.dumps(versions(sys.argv[2:])))
        return
    request = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    end_with_asker()
    {"gptqmodel": run_gptqmodel, "autoawq": run_autoawq}[request["package"]](request)


def versions(packages: list[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def end_with_asker() -> None:
    """Kill this session as soon as the other end of standard input is closed, even by a kill of its process."""

    def watch() -> None:
        os.read(0, 1)  # nothing is ever written
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def run_gptqmodel(request: dict[str, Any]) -> None:
    """Quantize with GPTQModel: GPTQ or AWQ, everything else by its defaults."""
    from gptqmodel import GPTQModel, QuantizeConfig

    config = QuantizeConfig(
        bits=4,
        method=request["format"],
        format=request["checkpoint_format"],
        group_size=request["group_size"],
        sym=request["symmetric"],
        desc_act=request["desc_act"],
        offload_to_disk_path="offloaded",  # in the working folder: it is written into the result's config.json
    )
    model = GPTQModel.load(request["source"], config, device=request["device"], trust_remote_code=False)
    windows = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in request["windows"]]
    model.quantize(windows, batch_size=1)
    model.save(request["out"], max_shard_size=request["shard_bytes"])


def run_autoawq(request: dict[str, Any]) -> None:
    """Quantize with AutoAWQ, everything else by its defaults; a window at a time, which takes less memory."""
    from awq import AutoAWQForCausalLM

    model = AutoAWQForCausalLM.from_pretrained(request["source"], trust_remote_code=False)
    config = {
        "w_bit": 4,
        "q_group_size": request["group_size"],
        "zero_point": not request["symmetric"],
        "version": request["checkpoint_format"],
    }
    windows = request["windows"]
    model.quantize(
        quant_config=config,
        calib_data=windows,
        max_calib_samples=len(windows),
        max_calib_seq_len=len(windows[0]),
        n_parallel_calib_samples=1,
    )
    model.save_quantized(request["out"], shard_size=request["shard_bytes"])


if __name__ == "__main__":
    main()
