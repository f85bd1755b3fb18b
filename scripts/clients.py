"""`make clients`: the packages openai, langchain-openai and litellm, in an environment of their own, against a server.

The model is a tiny one that is made here, or CLIENTS_MODEL; the environment is .venv-clients, or CLIENTS_PYTHON.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("openai>=1.60,<4", "langchain-openai>=0.3,<2", "litellm>=1.60,<2", "mcp>=1,<3")
sys.path.insert(0, str(ROOT))


def main() -> int:
    python = os.environ.get("CLIENTS_PYTHON") or str(_environment())
    with tempfile.TemporaryDirectory() as folder:
        model = os.environ.get("CLIENTS_MODEL") or str(_tiny(Path(folder) / "tiny"))
        token_file = Path(folder) / "token"
        command = [sys.executable, "-m", "qlocal.cli", "serve", "--port", "0", "--token-file", str(token_file), model]
        environment = {**os.environ, "QLOCAL_HOME": folder}
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
        try:
            assert server.stdout is not None, "it is a pipe"
            found = re.search(r"http://\S+/v1", server.stdout.readline())
            assert found is not None, "the server says where it listens"
            return _check(python, found[0], token_file.read_text().strip())
        finally:
            server.terminate()
            server.wait(60)


def _check(python: str, url: str, token: str) -> int:
    import time

    import httpx

    headers = {"Authorization": f"Bearer {token}"}
    deadline = time.monotonic() + 300
    while not (models := httpx.get(f"{url}/models", headers=headers).json()["data"]):
        assert time.monotonic() < deadline, "the model did not load"
        time.sleep(0.2)
    # litellm would fetch a list of prices.
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false"}
    command = [python, str(ROOT / "scripts" / "client_checks.py"), url, token, models[0]["id"]]
    return subprocess.run(command, env=environment).returncode


def _environment() -> Path:
    folder = ROOT / ".venv-clients"
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        (folder / ".ready").touch()
    return python


def _tiny(folder: Path) -> Path:
    """Write a tiny checkpoint whose chat template takes tools."""
    from tests.server.real import TOOL_TEMPLATE
    from tests.tiny import write_checkpoint

    write_checkpoint(folder, overrides={"max_position_embeddings": 2048})
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TOOL_TEMPLATE}))
    return folder


if __name__ == "__main__":
    sys.exit(main())
