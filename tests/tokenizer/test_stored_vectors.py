"""Ids of llama.cpp's 46 texts and of whole prompts, for every vocabulary that is at hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qlocal.errors import TemplateError
from qlocal.formats.base import TokenizerData
from qlocal.formats.gguf_metadata import read_tokenizer
from qlocal.formats.gguf_reader import read_gguf
from qlocal.guard.client import Guard
from qlocal.tokenizer import Tokenizer
from tests.tokenizer.conftest import QWEN_TEXTS, as_gguf, stored_pairs

CONVERSATIONS = {
    "one": [("user", "Hello")],
    "sys": [("system", "You are terse."), ("user", "Hello")],
    "multi": [("user", "Hello"), ("assistant", "Hi there"), ("user", "Who are you?")],
    "sysmulti": [
        ("system", "You are terse."),
        ("user", "Hello"),
        ("assistant", "Hi there"),
        ("user", "Who are you?"),
    ],
}
V3_TEMPLATE = (
    "{{ bos_token }}{% set state = namespace(ask=messages, system='') %}"
    "{% if messages[0].role == 'system' %}"
    "{% set state.ask = messages[1:] %}{% set state.system = messages[0].content ~ '\n\n' %}{% endif %}"
    "{% for m in state.ask %}{% if m.role == 'user' %}"
    "[INST] {{ state.system if loop.last }}{{ m.content }}[/INST]"
    "{% else %}SEPARATOR{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def messages(name: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in CONVERSATIONS[name]]


@pytest.fixture(scope="session", params=["tokenizer.json", "gguf"])
def qwen(request: pytest.FixtureRequest, qwen_data: TokenizerData, guard: Guard) -> Tokenizer:
    data = qwen_data if request.param == "tokenizer.json" else as_gguf(qwen_data, "qwen2", 151_936)
    return Tokenizer.load(data, guard)


def test_qwen_gives_the_ids_of_all_texts(qwen: Tokenizer, shared_data: Path) -> None:
    pairs = stored_pairs(shared_data / "tokenizers", QWEN_TEXTS, f"{QWEN_TEXTS}.out")
    assert len(pairs) == 46
    assert {text: qwen.encode(text) for text, _ in pairs} == dict(pairs)
    assert qwen.num_tokens == 151_665


@pytest.mark.parametrize("model", ["qwen2-instruct", "qwen2.5-instruct"])
def test_qwen_gives_the_ids_of_whole_prompts(
    qwen_data: TokenizerData, shared_data: Path, guard: Guard, model: str
) -> None:
    template = (shared_data / "templates" / f"{model}.jinja").read_text()
    tokenizer = Tokenizer.load(replace(qwen_data, chat_template=template), guard)
    cases = json.loads((shared_data / "templates" / "cases.json").read_text())
    prompts = [p for p in json.loads((shared_data / "tokenizers" / "chat_ids.json").read_text()) if p["model"] == model]
    assert prompts
    for prompt in prompts:
        case = next(
            c for c in cases if (c["model"], c["case"], c["expected"]) == (model, prompt["case"], prompt["text"])
        )
        ids = tokenizer.encode_chat(case["messages"], case.get("tools"), case["add_generation_prompt"])
        assert ids == prompt["ids"] == tokenizer.encode_with_specials(prompt["text"])


def llama_2(shared_data: Path) -> TokenizerData:
    return read_tokenizer(read_gguf(shared_data / "tokenizers" / "ggml-vocab-llama-spm.gguf"))


@pytest.mark.parametrize("name", ["llama-2", "mixtral-8x7b", "mixtral-8x22b"])
def test_sentencepiece_gives_the_ids_of_all_texts_and_the_texts_back(
    shared_data: Path, guard: Guard, name: str
) -> None:
    folder = shared_data / "tokenizers"
    if name == "llama-2":
        data, ids = llama_2(shared_data), "ggml-vocab-llama-spm.gguf.out"
    else:
        data = TokenizerData(sentencepiece_model=(folder / f"{name}.tokenizer.model").read_bytes())
        ids = f"{name}.out"
    tokenizer = Tokenizer.load(data, guard)
    pairs = stored_pairs(folder, QWEN_TEXTS, ids)
    assert len(pairs) == 46
    assert {text: tokenizer.encode(text) for text, _ in pairs} == dict(pairs)
    for text, text_ids in pairs:
        assert tokenizer.decode(text_ids) == text


@pytest.mark.parametrize(
    ("model", "template"),
    [
        ("mixtral-8x7b-instruct", "mistral-v1-system.jinja"),
        ("mixtral-8x7b-instruct", "mixtral-8x7b-instruct-2023.jinja"),
        ("mixtral-8x22b-instruct", V3_TEMPLATE.replace("SEPARATOR", " ")),
        ("mixtral-8x22b-instruct", V3_TEMPLATE.replace("SEPARATOR", "")),
    ],
)
def test_mixtral_has_one_blank_before_each_question_and_answer(
    shared_data: Path, guard: Guard, model: str, template: str
) -> None:
    folder = shared_data / "tokenizers"
    if template.endswith(".jinja"):
        template = (shared_data / "templates" / template).read_text()
    data = TokenizerData(
        sentencepiece_model=(folder / f"{model.removesuffix('-instruct')}.tokenizer.model").read_bytes(),
        chat_template=template,
        bos_token="<s>",
        eos_token="</s>",
        add_bos=True,
    )
    tokenizer = Tokenizer.load(data, guard)
    assert tokenizer.end_of_turn_ids == {2} and tokenizer.bos_ids() == [1]
    prompts: list[dict[str, Any]] = json.loads((folder / "chat_ids.json").read_text())
    done = 0
    for prompt in (p for p in prompts if p["model"] == model):
        try:
            assert tokenizer.encode_chat(messages(prompt["case"])) == prompt["ids"]
            done += 1
        except TemplateError as error:
            assert "sys" in prompt["case"] and "roles must alternate" in str(error), "no system role in 2023"
    assert done >= 2


def test_an_answer_streams_without_its_first_blank_and_with_bytes_joined(shared_data: Path, guard: Guard) -> None:
    model = (shared_data / "tokenizers" / "mixtral-8x7b.tokenizer.model").read_bytes()
    tokenizer = Tokenizer.load(TokenizerData(sentencepiece_model=model), guard)
    text = "Hi there 🦙 今天\n  two"
    decoder = tokenizer.stream_decoder()
    parts = [decoder.push(i) for i in tokenizer.encode(text)]
    assert "".join(parts) + decoder.finish() == text
    assert parts[0] == "Hi" and all("\ufffd" not in part for part in parts)


def test_typed_markers_of_mixtral_stay_text(shared_data: Path, guard: Guard) -> None:
    model = (shared_data / "tokenizers" / "mixtral-8x22b.tokenizer.model").read_bytes()
    tokenizer = Tokenizer.load(TokenizerData(sentencepiece_model=model), guard)
    assert tokenizer.special_ids.isdisjoint(tokenizer.encode("[INST] a </s> [/INST]"))
    assert tokenizer.encode_with_specials("[INST]")[0] == 3
