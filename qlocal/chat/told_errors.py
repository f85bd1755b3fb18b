"""What went wrong, in the language that is spoken. Errors are raised, logged and sent in English, as all programs read
them; the ones that users of the chat meet are known here by their sentences, and unknown ones stay as they are."""

from __future__ import annotations

import re
import string
from functools import cache

from qlocal.chat.languages import t

SENTENCES = (
    # What does not fit.
    "{name} with {context} tokens of context needs {needed} on {devices} ({weights} weights, {cache} cache, "
    "{scratch} scratch), {usable} can be used of {free} that are free",
    "{name} with {context} tokens of context needs {needed} on {devices} ({weights} weights, {cache} cache, "
    "{scratch} scratch), {usable} can be used of {free} that --max-memory allows",
    "other programs hold {taken}",
    "a context of {asked} tokens is asked for, the model was made for {most}",
    "Ask for at most {most} tokens.",
    "The largest context that fits is {context} tokens",
    "{option} makes {context} fit.",
    "It fits with {option}.",
    "Use a smaller or more quantized checkpoint, more devices, or free some memory.",
    "memory ran out while {name} was loaded",
    "although it was planned with {needed} of {free} that were free on {devices}",
    "End what took memory meanwhile, or load with less: {option}.",
    "the engine ran out of memory",
    "Choose a smaller context or a smaller model.",
    "the prompt has {tokens} tokens, and this model's maximum context length is {most}",
    "Shorten it, load the model with a larger context, or ask to truncate the middle.",
    # Models and their files.
    "{path}: there is no such file or folder",
    "there is no checkpoint at '{path}'",
    "there is no model '{name}'",
    "Did you mean '{name}'?",
    "`qlocal models list` shows the names there are.",
    "{path}: is neither a folder nor a GGUF file",
    "{name} could not be loaded: {why}",
    "the model '{name}' could not be loaded: {why}",
    "the model '{name}' is still loading",
    "no model is loaded",
    "no model is ready",
    "Wait until it is loaded, or load one.",
    "{path} was {before} bytes when it was loaded, and is {now} now",
    "Put the whole file there and load the model again.",
    # Server and engine.
    "{name} does not answer: {why}",
    "{name} did not answer in time",
    "the connection to {name} broke: {why}",
    "{name} closed the connection",
    "The server went away ({why})",
    "there is no server to ask",
    "the answer is cut off: the connection ended before the server had finished",
    "the engine ended with exit code {code}",
    "the engine was ended by {signal}",
    "the machine may have run out of memory",
    "a model file may have changed or its disk may have failed",
    "the engine gave no sign of life for {seconds} s",
    "the engine was stopped",
    "the model's output is not a finite number after {tokens} tokens",
    "the bearer token is missing or wrong",
    # Files taken along, exports and imports.
    "{path} is no file",
    "{path} cannot be read: {why}",
    "{path} cannot be written: {why}",
    "{path}: cannot be written: {why}",
    "{path}: is there already",
    "Give another name.",
    "{path} has {size} MiB, a file may have at most {most} MiB",
    "{path} has {chars} characters of text, at most {most} can be sent",
    "{path} has no text in it",
    "{path} is no text in UTF-8 (byte {byte}): binary files cannot be sent",
    "{path} is binary (it has zero bytes) and cannot be sent",
    "A scanned PDF holds pictures of text: recognize it first",
)
MAX_CHARS = 2000
"""Longer ones are not looked at: what a server says may have been made to take long."""
_TEXTS = {"name": ".+?", "path": ".+?", "devices": ".+?", "option": ".+?", "signal": r"\w+", "why": ".+"}
_NUMBER = r"[\d.,]+(?: [MG]iB)?"
MARKS = (". ", ", ", "; ", ": ")
"""Behind a sentence stands one of them, or a space where it has its full stop."""
_AROUND = ("mark", "rest")


def told(text: str) -> str:
    """Return an error as the chat shows it: each sentence that is known, from the first on."""
    if len(text) > MAX_CHARS:
        return text
    for sentence in SENTENCES:
        if found := _pattern(sentence).fullmatch(text):
            values = {name: _value(name, value) for name, value in found.groupdict().items() if name not in _AROUND}
            rest = f"{t(found['mark'])}{told(found['rest'])}" if found["rest"] else ""
            return t(sentence).format(**values) + rest
    return text


def _value(name: str, value: str) -> str:
    if name == "why":
        return told(value)
    if name == "devices":
        return value.replace(" and ", t(" and "))
    return t("the server") if value == "the server" else value


@cache
def _pattern(sentence: str) -> re.Pattern[str]:
    """Match the sentence, and what may follow it. Numbers match numbers alone, so that little is tried twice."""
    parts = []
    for literal, name, _, _ in string.Formatter().parse(sentence):
        parts.append(re.escape(literal))
        if name is not None:
            parts.append(f"(?P<{name}>{_TEXTS.get(name, _NUMBER)})")
    mark = " " if sentence[-1] in ".?" else "|".join(map(re.escape, MARKS))
    return re.compile("".join(parts) + f"(?:(?P<mark>{mark})(?P<rest>.+))?", re.DOTALL)
