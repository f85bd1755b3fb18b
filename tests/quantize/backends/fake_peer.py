"""An interpreter that has packages standing for the peers: they write folders that our own quantizer has made."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

GPTQMODEL = """
import json, os, pathlib, shutil, signal, sys, time

HERE = pathlib.Path(__file__).resolve().parent.parent

class QuantizeConfig:
    def __init__(self, **values):
        self.values = values

class GPTQModel:
    @classmethod
    def load(cls, source, config, **values):
        model = cls()
        model.config = config.values
        model.seen = {"source": source, "config": config.values, "load": values}
        model.seen["offline"] = os.environ["HF_HUB_OFFLINE"]
        return model

    def quantize(self, windows, **values):
        self.seen |= {"windows": [w["input_ids"] for w in windows], "masks": [w["attention_mask"] for w in windows]}
        (HERE / ("seen-%s.json" % self.config["method"])).write_text(json.dumps(self.seen))
        act = (HERE / "act").read_text()
        print("loading", "\\r 10 %\\r 20 %\\x1b[31m")
        if act == "raise":
            raise RuntimeError("no such layer")
        if act == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if act == "hang":
            (HERE / "pid").write_text(str(os.getpid()))
            time.sleep(600)

    def save(self, out, **values):
        if (HERE / "act").read_text() != "forget":
            shutil.copytree(HERE / ("result-%s" % self.config["method"]), out)
            (pathlib.Path(out) / "tokenizer.json").write_text("{}")
            (pathlib.Path(out) / "chat_template.jinja").write_text("another one")
"""
AWQ = """
import json, pathlib, shutil

HERE = pathlib.Path(__file__).resolve().parent.parent

class AutoAWQForCausalLM:
    @classmethod
    def from_pretrained(cls, source, **values):
        model = cls()
        model.seen = {"source": source, "load": values}
        return model

    def quantize(self, **values):
        (HERE / "seen-autoawq.json").write_text(json.dumps(self.seen | values))

    def save_quantized(self, out, **values):
        shutil.copytree(HERE / "result-awq", out)
"""


class FakePeer:
    """The folder of the fake interpreter. python: its path; `act` sets how GPTQModel behaves."""

    def __init__(self, folder: Path, versions: dict[str, str]) -> None:
        self._folder = folder
        self.python = folder / "python"
        for name, content in (("gptqmodel", GPTQMODEL), ("awq", AWQ)):
            (folder / name).mkdir(parents=True)
            (folder / name / "__init__.py").write_text(content)
        for package, version in versions.items():
            metadata = folder / f"{package}-{version}.dist-info"
            metadata.mkdir()
            (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        self.python.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(folder))} exec {sys.executable} -S "$@"\n')
        self.python.chmod(0o755)
        self.act("well")

    def act(self, how: str) -> None:
        """Behave `well`, `raise`, `die`, `hang`, or `forget` to write a result."""
        (self._folder / "act").write_text(how)

    def result(self, format_name: str) -> Path:
        """Return the place of the folder that it writes for a format."""
        return self._folder / f"result-{format_name}"

    def seen(self, name: str) -> dict[str, Any]:
        """Return what the package was called with: `gptq`, `awq` (of GPTQModel) or `autoawq`."""
        content: dict[str, Any] = json.loads((self._folder / f"seen-{name}.json").read_text())
        return content

    @property
    def pid_file(self) -> Path:
        """Where it tells its process when it hangs."""
        return self._folder / "pid"
