"""Loading, quantizing and talking run nothing that a checkpoint brings along: no pickle, no module, no connection."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

from tests import tiny

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "zipfile", "tarfile", "transformers"}
FORBIDDEN_CALLS = {"torch.load", "np.load", "numpy.load", "eval", "exec", "os.system"}
PEERS = ROOT / "quantize" / "backends" / "peer.py"
"""Runs another project's package in that package's own interpreter, and nothing of ours."""

HOSTILE_FIELDS = {
    "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": "evil.Tokenizer"},
    "trust_remote_code": True,
    "_attn_implementation_internal": "evil/kernel",
    "custom_pipelines": {"text-generation": {"impl": "evil.Pipeline"}},
    "_name_or_path": "../../evil",
}
WATCHED = """
import sys
FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "socket.getaddrinfo")
SEEN = []
def watch(event, arguments):
    if event.startswith(FORBIDDEN) or (event == "import" and arguments[0].split(".")[0] in ("evil", "transformers")):
        SEEN.append((event, str(arguments)[:200]))
    if event == "subprocess.Popen" and "qlocal.guard.worker" not in str(arguments[1]):
        SEEN.append((event, str(arguments)[:200]))
source, out = sys.argv[1:]
from pathlib import Path
from quantize import pipeline
from quantize.cli import main
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.guard.client import Guard
from qlocal.layers.loader import load_layer
from qlocal.tokenizer import Tokenizer
sys.path.insert(0, source)
sys.addaudithook(watch)
code = main([source, "--out", out, "--format", "awq,gguf", "--samples", "2", "--seq-len", "32", "--no-verify"])
assert code == 0, code
results = [path for path in Path(out).iterdir() if path.is_dir() or path.suffix == ".gguf"]
assert len(results) == 2
for path in (source, *results):
    checkpoint = open_checkpoint(path)
    load_layer(checkpoint, 0, "cpu", "float32", "reference")
    with Guard() as guard:
        tokenizer = Tokenizer.load(checkpoint.tokenizer(), guard)
        assert tokenizer.encode_chat([{"role": "user", "content": "hi"}])
print("seen:", SEEN)
"""


def modules(path: Path) -> set[str]:
    """Return what a file imports and calls, of the things that run or unpack what they are given."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            found |= {node.module.split(".")[0]} & FORBIDDEN
        elif isinstance(node, ast.Call):
            found |= {ast.unparse(node.func)} & FORBIDDEN_CALLS
    return found


def test_nothing_that_unpickles_unpacks_or_evaluates_is_imported_or_called() -> None:
    paths = [path for folder in ("qlocal", "quantize") for path in (ROOT / folder).rglob("*.py") if path != PEERS]
    assert len(paths) > 200
    found = {str(path.relative_to(ROOT)): modules(path) for path in paths if modules(path)}
    # A .docx that a user takes along is an archive. It is opened in memory, in the guard, and nothing of it is written.
    assert found == {"qlocal/guard/documents.py": {"zipfile"}}


def test_a_checkpoint_that_brings_code_has_none_of_it_run(tmp_path: Path) -> None:
    source = tiny.write_checkpoint(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | HOSTILE_FIELDS))
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(settings | HOSTILE_FIELDS))
    (source / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    (source / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(source), str(tmp_path / "out")],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("seen: []"), done.stdout[-2000:]
    assert not (tmp_path / "ran").exists()
    assert not list((tmp_path / "out").rglob("*.py")) and not list((tmp_path / "out").rglob("*.bin"))
