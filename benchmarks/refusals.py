"""What refusing costs: the worst files that the limits let pass, a process each, and parsing a large vocabulary.

`python -m benchmarks.refusals` prints processor time and memory above the start. The promise: 2 s and 256 MiB to
refuse, 1 s for a vocabulary of 262,144 tokens.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from qlocal.formats.gguf_reader import MAX_ARRAY_ELEMENTS, MAX_TENSORS
from qlocal.strict_json import MAX_MEMORY_BYTES
from tests.formats.gguf_files import file_bytes, key, string

STRING, ARRAY = 8, 9
READ = """
import sys, time
from pathlib import Path
from qlocal.formats.gguf_reader import read_gguf
from qlocal.formats.safetensors_file import read_header
from qlocal.errors import QLocalError
def peak(): return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))
path, before, started = Path(sys.argv[1]), peak(), time.process_time()
try:
    (read_gguf if path.suffix == ".gguf" else read_header)(path)
    outcome = "read"
except QLocalError:
    outcome = "refused"
print(outcome, time.process_time() - started, (peak() - before) / 1024)
"""


def strings(text: str, count: int) -> bytes:
    return key("a", ARRAY, struct.pack("<IQ", STRING, count) + string(text) * count)


def gguf_strings(text: str) -> bytes:
    """Return as many strings as may be, and an unknown type where they end."""
    return file_bytes([strings(text, MAX_ARRAY_ELEMENTS), key("z", 99, b"")])


def gguf_tensors() -> bytes:
    """Return as many tensors as may be, the last one out of place."""
    infos = [string(f"{i:x}") + struct.pack("<IQIQ", 1, 8, 0, 32 * i) for i in range(MAX_TENSORS - 1)]
    return file_bytes(infos=[*infos, string("z") + struct.pack("<IQIQ", 1, 8, 0, 1)], data=bytes(32 * MAX_TENSORS))


def vocabulary() -> bytes:
    tokens = strings("token1234", 262_144)
    merges = key("b", ARRAY, struct.pack("<IQ", STRING, 262_144) + string("tok en1234") * 262_144)
    return file_bytes([tokens, merges, key("c", ARRAY, struct.pack("<IQ", 5, 262_144) + bytes(4 * 262_144))])


def safetensors(values: Callable[[int], str], cost: int) -> bytes:
    """Return a header of as many values as the estimate of memory lets pass."""
    text = ",".join(map(values, range(int(MAX_MEMORY_BYTES * 0.98) // cost)))
    data = ("{" + text + "}" if values(0).startswith('"') and ":" in values(0) else f'{{"a":[{text}]}}').encode()
    return struct.pack("<Q", len(data)) + data


def tensor(index: int) -> str:
    entry = {"dtype": "F32", "shape": [300, 300], "data_offsets": [index * 360_000, index * 360_000 + 360_001]}
    return f'"layers.{index:06}.weight":' + json.dumps(entry, separators=(",", ":"))


CASES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "GGUF: a vocabulary of 262,144 tokens and merges": (".gguf", vocabulary),
    "GGUF: 1,572,864 short strings": (".gguf", lambda: gguf_strings("ab")),
    "GGUF: 1,572,864 strings with a wide character": (".gguf", lambda: gguf_strings("\U0001f600abcdefghi")),
    "GGUF: 65,536 tensors": (".gguf", gguf_tensors),
    "safetensors: tensors": (".safetensors", lambda: safetensors(tensor, 1700)),
    "safetensors: empty lists": (".safetensors", lambda: safetensors(lambda _: "[]", 88 + 60 + 9)),
    "safetensors: short texts": (".safetensors", lambda: safetensors(lambda _: '"ab"', 60 + 15)),
    "safetensors: keys": (".safetensors", lambda: safetensors(lambda i: f'"{i:x}":0', 210 + 30)),
    "safetensors: a header of 93 MB": (".safetensors", lambda: struct.pack("<Q", 92_800_000) + bytes(92_800_000)),
}


def main() -> None:
    print("| file | MB | | seconds | MiB |\n|---|---:|---|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (suffix, content)) in enumerate(CASES.items()):
            path = Path(folder) / f"{number}{suffix}"
            path.write_bytes(content())
            command = [sys.executable, "-c", READ, str(path)]
            outcome, seconds, mib = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            size = path.stat().st_size / 1e6
            print(f"| {name} | {size:.1f} | {outcome} | {float(seconds):.2f} | {float(mib):.0f} |", flush=True)
            path.unlink()


if __name__ == "__main__":
    main()
