"""A description has the bytes of the file that it describes: the catalogue's, which `quantize` and others write."""

from __future__ import annotations

import pytest

from qlocal import catalog
from qlocal.errors import FormatError, UsageError
from qlocal.formats.described import TYPES, DescribedCheckpoint, Description, describe

SIZES = [
    (name, table, kind)
    for name, entry in catalog.entries().items()
    for table in ("sizes", "unpadded_sizes")
    for kind in getattr(entry, table)
]


def described(name: str, description: Description) -> DescribedCheckpoint:
    entry = catalog.entry(name)
    return describe(name, entry.architecture, entry.config(), description)


@pytest.mark.parametrize(("name", "table", "kind"), SIZES)
def test_a_description_has_the_bytes_of_the_catalogue(name: str, table: str, kind: str) -> None:
    found = described(name, Description(kind, pads_ffn=table == "sizes"))
    rope_factors = 4 * found.config.head_dim // 2 if found.format == "gguf" and found.config.rope_scaling else 0
    total = sum(stored.num_bytes for stored in found.tensors.values()) + rope_factors
    assert total == getattr(catalog.entry(name), table)[kind]


def test_a_head_in_codes_is_a_tensor_of_its_own() -> None:
    plain, coded = (described("qwen2.5-1.5b-instruct", Description("awq", quantizes_head=q)) for q in (False, True))
    assert "lm_head.weight" not in plain.tensors
    assert coded.tensors["lm_head.weight"].storage == "awq"
    assert not coded.config.tie_word_embeddings


def test_groups_are_smaller_where_they_must_be() -> None:
    found = described("qwen2.5-0.5b-instruct", Description("gptq"))
    assert {s.group_size for s in found.tensors.values() if s.storage == "gptq"} == {128}
    with pytest.raises(UsageError, match="no group size up to 16 divides"):
        described("qwen2.5-0.5b-instruct", Description("gptq", group_size=16))


def test_what_is_not_here_is_not_read() -> None:
    with pytest.raises(UsageError, match=f"type 'q9' is unknown. Known: {', '.join(TYPES)}"):
        described("qwen2.5-0.5b-instruct", Description("q9"))
    found = described("qwen2.5-0.5b-instruct", Description("q4_k_m"))
    for read in (found.tokenizer, found.generation_defaults, lambda: found.read("model.norm.weight")):
        with pytest.raises(FormatError, match=r"qwen2.5-0.5b-instruct is not here.*qlocal pull"):
            read()
