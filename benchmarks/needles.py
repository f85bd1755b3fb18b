"""Is what stands somewhere in a long context found again, and does a smaller cache find less?

    python benchmarks/needles.py MODEL --text FILE [--lengths 4096,16384,32768] [--needles 40,70,90] [--kv f16,q8,q4]

Codes of made-up things stand between the paragraphs of a prose text, evenly from its first to its last tokens. Each is
asked for alone, behind as much of the text as a length says; one text serves all lengths, and all questions at a length
share what was computed. Greedy answers count as found when they begin with the code. Prints a Markdown table with the
number found and 95 % intervals (Wilson), and where those that were missed stood.
"""

from __future__ import annotations

import argparse
import gc
import math
import random
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from qlocal.engine.engine import Engine
from qlocal.engine.loading import load_engine
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.guard.client import Guard
from qlocal.protocol import Finished, Load, Sampling, Started, Submit, Tokens
from qlocal.tokenizer import Tokenizer

COLOURS = "red blue green white black golden silver purple orange yellow brown pink grey crimson"
THINGS = "fox lamp river castle violin garden engine mirror bridge orchard anchor meadow clock lantern harbour"
STATEMENT = "\nThe secret code of the {} is {}.\n"
QUESTION = "\n\nQuestion: What is the secret code of the {}?\nAnswer: The secret code of the {} is"
ANSWER_TOKENS, QUESTION_TOKENS = 8, 64


@dataclass(frozen=True)
class Needle:
    """A code, and the token behind which it stands."""

    name: str
    code: str
    place: int


@dataclass(frozen=True)
class Haystack:
    """The text with all needles in it; those of a length stand in its first tokens, which `ids` begin with."""

    ids: list[int]
    needles: list[Needle]

    def asked_at(self, length: int, count: int) -> list[Needle]:
        """Return `count` of the needles that stand before `length`, evenly."""
        there = [needle for needle in self.needles if needle.place < length - QUESTION_TOKENS]
        return [there[len(there) * index // count] for index in range(min(count, len(there)))]


def haystack_of(tokenizer: Tokenizer, text: str, lengths: list[int], counts: list[int]) -> Haystack:
    """Hide as many needles in every part between two lengths as are asked for at the longer one."""
    chosen = random.Random(0)
    names = [f"{colour} {thing}" for colour in COLOURS.split() for thing in THINGS.split()]
    chosen.shuffle(names)
    paragraphs = (tokenizer.encode(part + "\n") for part in text.split("\n") if part.strip())
    ids: list[int] = []
    needles: list[Needle] = []
    for before, length, count in zip([0, *lengths], lengths, counts, strict=False):
        step, due = (length - QUESTION_TOKENS - 64 - before) / count, float(before)
        while len(ids) < length:
            if len(ids) >= due and len(ids) < length - QUESTION_TOKENS - 32:
                name, code = names.pop(), str(chosen.randrange(10_000, 100_000))
                needles.append(Needle(name, code, len(ids)))
                ids += tokenizer.encode(STATEMENT.format(name, code))
                due += step
            else:
                ids += next(paragraphs)[: max(8, int(due - len(ids)))]
        del ids[length:]
    return Haystack(ids, needles)


def answer(engine: Engine, prompt: list[int], num_tokens: int) -> tuple[list[int], Started]:
    """Return the greedy answer, and what the engine said of the prompt."""
    engine.submit(Submit("needle", prompt, ANSWER_TOKENS, [], Sampling(temperature=0.0), num_tokens))
    token_ids: list[int] = []
    started: Started | None = None
    while engine.has_work:
        for message in engine.step():
            if isinstance(message, Started):
                started = message
            elif isinstance(message, Tokens):
                token_ids += message.token_ids
            elif isinstance(message, Finished):
                assert message.reason == "length", message.message
    assert started is not None, "every prompt is started"
    return token_ids, started


def interval(found: int, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    z, share = 1.96, found / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return middle - half, middle + half


def search(
    engine: Engine, tokenizer: Tokenizer, haystack: Haystack, lengths: list[int], counts: list[int]
) -> dict[int, list[Needle]]:
    """Ask for all needles, the shortest length first; return those that were missed, by length."""
    missed: dict[int, list[Needle]] = {}
    for length, count in zip(lengths, counts, strict=True):
        begun = time.perf_counter()
        document = haystack.ids[: length - QUESTION_TOKENS]
        missed[length] = []
        for index, needle in enumerate(haystack.asked_at(length, count)):
            question = tokenizer.encode(QUESTION.format(needle.name, needle.name))
            token_ids, started = answer(engine, document + question, tokenizer.num_tokens)
            assert index == 0 or started.cached_tokens >= len(document) - 1, "the text is computed once"
            if not tokenizer.decode(token_ids).strip().startswith(needle.code):
                missed[length].append(needle)
        taken = time.perf_counter() - begun
        print(f"  {length}: {count - len(missed[length])} of {count} found, {taken:.0f} s", flush=True)
    return missed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--lengths", default="4096,16384,32768")
    parser.add_argument("--needles", default="40,70,90")
    parser.add_argument("--kv", default="f16 q8 q4", help="types of the cache, separated by blanks")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    lengths, counts = [int(n) for n in args.lengths.split(",")], [int(n) for n in args.needles.split(",")]
    with closing(Guard()) as guard:
        tokenizer = Tokenizer.load(open_checkpoint(args.model).tokenizer(), guard)
        haystack = haystack_of(tokenizer, args.text.read_text(), lengths, counts)
        print(f"{len(haystack.ids)} tokens with {len(haystack.needles)} needles", flush=True)
        rows = []
        for kv in args.kv.split():
            print(kv, flush=True)
            load = Load(str(args.model), ["cpu"], max_context=lengths[-1], slots=1, kv=kv, threads=args.threads)
            engine = load_engine(load, lambda _: None)
            missed = search(engine, tokenizer, haystack, lengths, counts)
            rows.append(row(kv, missed, lengths, counts))
            del engine
            gc.collect()  # its parts know each other, and its cache is large
    print(f"\n| cache | {' | '.join(f'{n:,} tokens' for n in lengths)} | all |\n|---|{'---:|' * (len(lengths) + 1)}")
    print("\n".join(rows))


def row(kv: str, missed: dict[int, list[Needle]], lengths: list[int], counts: list[int]) -> str:
    """Return a line of the table."""
    cells = []
    for length, count in zip(lengths, counts, strict=True):
        places = ", ".join(f"{needle.place / length:.0%}" for needle in missed[length])
        cells.append(f"{count - len(missed[length])} of {count}" + (f" (missed at {places})" if places else ""))
    total = sum(counts) - sum(map(len, missed.values()))
    low, high = interval(total, sum(counts))
    return f"| {kv} | {' | '.join(cells)} | {total} of {sum(counts)}, {low:.1%} to {high:.1%} |"


if __name__ == "__main__":
    main()
