"""What is said over the tokens of an answer: how sure the model was of them, and how far another variant is from it."""

from __future__ import annotations

from collections.abc import Sequence

from qlocal.chat.languages import t
from qlocal.chat.link_state import Variant
from qlocal.chat.logprobs import TokenLogprobs
from qlocal.chat.replay import Replay, ReplayedToken


def alternatives_head(model: str | None, tokens: Sequence[TokenLogprobs]) -> str:
    """Say whose tokens these are, and how sure the model was on the whole."""
    mean = sum(token.entropy_bits for token in tokens) / max(1, len(tokens))
    best = sum(token.is_best for token in tokens) / max(1, len(tokens))
    text = t("{model} · {count:,} tokens · {best:.0%} the likeliest · {mean:.2f} bits each")
    return text.format(model=model or t("Answer"), count=len(tokens), best=best, mean=mean)


def token_head(token_idx: int, count: int, token: TokenLogprobs) -> str:
    """Say how sure the model was of one token. All that is not among the best counts as one: the entropy is a bound."""
    text = t("Token {number:,} of {count:,} · entropy ≥ {bits:.2f} bits · others {rest:.1%}")
    return text.format(number=token_idx + 1, count=count, bits=token.entropy_bits, rest=token.rest)


def variant_detail(variant: Variant) -> str:
    """Say how large a variant is, and what it would change beside the bits."""
    size = f"{variant.format}, {variant.num_bytes / 2**30:.2f} GiB"
    return size if variant.is_same_size else t("{size}, a model of another size").format(size=size)


def replaying(name: str) -> str:
    """Say which model reads the answer."""
    return t("{name} reads the answer …").format(name=name)


def swapping(name: str) -> str:
    """Say that the model in the server is another one for a moment."""
    return t("Loading {name} in place of the model; it comes back afterwards. Esc ends it.").format(name=name)


def replay_head(replay: Replay) -> str:
    """Say how far two variants are over a whole answer, in llama.cpp's words."""
    first = replay.first_divergence
    place = t("never") if first is None else t("token {number:,}").format(number=first + 1)
    return t(
        "{replay.candidate} from {replay.reference} · mean KLD {replay.mean_kl:.4f} · median {replay.median_kl:.4f} · "
        "max {replay.max_kl:.3f} · same top {replay.same_top:.1%} · first divergence {place}"
    ).format(replay=replay, place=place)


def replayed_token(idx: int, count: int, token: ReplayedToken, threshold: float, marked: int) -> str:
    """Say how far two variants are at one token."""
    top = t("the same token on top") if token.is_same_top else t("another token on top")
    text = t("Token {number:,} of {count:,} · KLD {kl:.4f} · {top} · {marked:,} marked from {threshold:g} on")
    return text.format(number=idx + 1, count=count, kl=token.kl, top=top, marked=marked, threshold=threshold)
