"""How fast does a conversation come back from disk? Its blocks' bytes a second, beside what the disk reads.

    python benchmarks/sessions.py MODEL --folder DIR [--tokens 4096] [--kv f16] [--ranks 1]

Reads a made-up prompt, keeps it, ends the engine, drops the files from the system's memory, and asks again: the time to
the first token, and how much of that is reading. Then the same files are read as plain bytes, dropped before as well:
one after another, and four at once, which is what the disk can give.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qlocal.engine.engine import Engine
from qlocal.engine.loading import load_engine
from qlocal.protocol import Load, Sampling, Started, Submit


def drop(folder: Path) -> None:
    """Have the system forget what it has read of the files."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def first_token(engine: Engine, prompt: list[int]) -> tuple[float, Started]:
    """Return seconds until the prompt was read, and what the engine says of it."""
    engine.submit(Submit("a", prompt, 1, [], Sampling(temperature=0.0), engine.vocab_size))
    begun, started, taken = time.perf_counter(), None, 0.0
    while engine.has_work:
        for message in engine.step():
            if isinstance(message, Started):
                started, taken = message, time.perf_counter() - begun
    assert started is not None, "every prompt is started"
    return taken, started


def read_plainly(folder: Path, at_once: int) -> float:
    """Return the bytes a second of reading all files from end to end, several at once."""

    def read(path: Path) -> int:
        buffer, total = bytearray(8 << 20), 0
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
        return total

    begun = time.perf_counter()
    with ThreadPoolExecutor(at_once) as pool:
        total = sum(pool.map(read, folder.iterdir()))
    return total / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--kv", default="f16")
    parser.add_argument("--ranks", type=int, default=1, help="of a tensor split")
    args = parser.parse_args()
    load = Load(
        str(args.model),
        ["cpu"] * args.ranks,
        split="layer" if args.ranks == 1 else "tensor",
        max_context=args.tokens + 2,
        slots=1,
        kv=args.kv,
        sessions_folder=str(args.folder),
        sessions_bytes=1 << 40,
    )
    before = load_engine(load, lambda _: None)
    prompt = [(7919 * i + 31) % before.vocab_size for i in range(args.tokens)]
    computed_s, _ = first_token(before, prompt)
    begun = time.perf_counter()
    before.keep_all(within_s=600)
    written_s = time.perf_counter() - begun
    num_bytes = sum(path.stat().st_size for path in args.folder.iterdir())
    before.close()
    del before
    after = load_engine(load, lambda _: None)
    drop(args.folder)
    restored_s, started = first_token(after, prompt)
    held_s, _ = first_token(after, prompt)
    after.close()
    plain = {}
    for at_once in (1, 4):
        drop(args.folder)
        plain[at_once] = read_plainly(args.folder, at_once)
    rate = num_bytes / (restored_s - held_s)
    print(f"{args.tokens} tokens, {num_bytes / 1e6:.0f} MB with --kv {args.kv}")
    print(f"computed in {computed_s:.2f} s, written in {written_s:.2f} s ({num_bytes / written_s / 1e6:.0f} MB/s)")
    print(f"first token after {restored_s:.2f} s, {held_s:.2f} s where the cache still holds all")
    print(f"{started.restored_tokens} tokens restored at {rate / 1e6:.0f} MB/s")
    for at_once, found in plain.items():
        share = f"{found / 1e6:.0f} MB/s, of which that is {rate / found:.0%}"
        print(f"the same files as plain bytes, {at_once} at once: {share}")


if __name__ == "__main__":
    main()
