"""What does guessing ahead give? Tokens a second without guesses, by the context alone, and with a draft model.

    python benchmarks/speculation.py MODEL --draft SMALL --code FILE --prose FILE [--prompts 50] [--tokens 48]

Greedy answers to three kinds of prompts: code to be completed, code to be written out again with a change (the model's
own chat template), prose to be completed. The ways take turns prompt by prompt, so that what else the machine does
meets all of them. Prints a Markdown table, and how many answers are, token by token, those without guesses.
"""

from __future__ import annotations

import argparse
import random
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from qlocal.config import FROM_CONTEXT, NO_DRAFT
from qlocal.engine.engine import Engine
from qlocal.engine.loading import load_engine
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.guard.client import Guard
from qlocal.protocol import Finished, Load, Sampling, Submit, Tokens
from qlocal.tokenizer import Tokenizer

CHANGE = "Write this code out again with every function documented, and nothing else:\n\n```python\n{}\n```"
KINDS = {"code, completed": 0.4, "code, changed": 0.2, "prose": 0.4}


@dataclass
class Sum:
    """What the answers of one way to prompts of one kind took, decoding alone."""

    tokens: int = 0
    seconds: float = 0.0
    drafted: int = 0
    accepted: int = 0


@dataclass
class Answer:
    token_ids: list[int]
    finished: Finished


def prompts_of(tokenizer: Tokenizer, code: str, prose: str, count: int, length: int) -> list[tuple[str, list[int]]]:
    """Return (kind, ids) of pieces from all over the texts."""
    found = []
    for kind, share in KINDS.items():
        text, number = (prose if kind == "prose" else code), round(count * share)
        for index in range(number):
            start = text.index("\n", len(text) * index // number) + 1
            piece = text[start : start + 4 * length]
            if kind == "code, changed":
                ids = tokenizer.encode_chat([{"role": "user", "content": CHANGE.format(piece[: 2 * length])}])
            else:
                ids = tokenizer.encode(piece)[:length]
            found.append((kind, ids))
    random.Random(0).shuffle(found)
    return found


def answer(engine: Engine, name: str, prompt: list[int], tokens: int, num_tokens: int) -> Answer:
    """Run one request to its end."""
    engine.submit(Submit(name, prompt, tokens, [], Sampling(temperature=0.0), num_tokens))
    token_ids: list[int] = []
    while engine.has_work:
        for message in engine.step():
            if isinstance(message, Tokens):
                token_ids += message.token_ids
            elif isinstance(message, Finished):
                return Answer(token_ids, message)
    raise AssertionError("every request ends with a Finished")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--code", type=Path, required=True)
    parser.add_argument("--prose", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--length", type=int, default=256, help="tokens of a prompt")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    with closing(Guard()) as guard:
        tokenizer = Tokenizer.load(open_checkpoint(args.model).tokenizer(), guard)
        prompts = prompts_of(tokenizer, args.code.read_text(), args.prose.read_text(), args.prompts, args.length)
    ways = {"none": NO_DRAFT, "context": FROM_CONTEXT} | ({"draft": str(args.draft)} if args.draft else {})
    engines = {
        name: load_engine(
            Load(
                str(args.model),
                ["cpu"],
                max_context=2 * args.length + 64 + args.tokens,
                slots=1,
                threads=args.threads,
                draft=way,
            ),
            lambda _: None,
        )
        for name, way in ways.items()
    }
    sums = {(kind, way): Sum() for kind in KINDS for way in ways}
    same = dict.fromkeys(ways, 0)
    for index, (kind, prompt) in enumerate(prompts):
        answers = {
            way: answer(engine, f"{way}-{index}", prompt, args.tokens, tokenizer.num_tokens)
            for way, engine in engines.items()
        }
        for way, found in answers.items():
            same[way] += found.token_ids == answers["none"].token_ids
            total, finished = sums[kind, way], found.finished
            total.tokens += finished.completion_tokens - 1  # the first comes with the prompt
            total.seconds += finished.decode_s
            total.drafted += finished.drafted_tokens
            total.accepted += finished.accepted_tokens
        if index % 10 == 9:
            print(f"{index + 1} prompts: the same answers {same}", flush=True)
            print_table(sums, list(ways))
    print_table(sums, list(ways))
    print(f"\nThe same greedy answer as without guesses, of {len(prompts)}: {same}")


def print_table(sums: dict[tuple[str, str], Sum], ways: list[str]) -> None:
    """Print a line a kind, for every way tokens a second, times as fast, and the share of guesses that were right."""
    print(f"\n| prompts | {' | '.join(ways)} |\n|---|{'---:|' * len(ways)}")
    for kind in KINDS:
        plain = sums[kind, "none"]
        if not plain.tokens:
            continue
        cells = []
        for way in ways:
            total = sums[kind, way]
            rate, gain = total.tokens / total.seconds, total.tokens / total.seconds * plain.seconds / plain.tokens
            right = f", {total.accepted / total.drafted:.0%} of {total.drafted} right" if total.drafted else ""
            cells.append(f"{rate:.1f}/s ({gain:.2f} x{right})")
        print(f"| {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
