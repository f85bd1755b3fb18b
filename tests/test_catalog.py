from __future__ import annotations

import json
from math import prod
from pathlib import Path

import pytest

from qlocal import catalog
from qlocal.catalog import Entry
from qlocal.errors import ConfigError, UsageError
from tests import tiny

PARAMETERS = {
    "qwen2-72b-instruct": 72_706_203_648,
    "qwen2.5-0.5b-instruct": 494_032_768,
    "qwen2.5-1.5b-instruct": 1_543_714_304,
    "qwen2.5-3b-instruct": 3_085_938_688,
    "qwen2.5-7b-instruct": 7_615_616_512,
    "qwen2.5-14b-instruct": 14_770_033_664,
    "qwen2.5-32b-instruct": 32_763_876_352,
    "qwen2.5-72b-instruct": 72_706_203_648,
    "llama-3-70b-instruct": 70_553_706_496,
    "llama-3.1-8b-instruct": 8_030_261_248,
    "llama-3.1-70b-instruct": 70_553_706_496,
    "mixtral-8x7b-instruct-v0.1": 46_702_792_704,
    "mixtral-8x22b-instruct-v0.1": 140_630_071_296,
}
"""As the makers' own classes build them."""

KNOWN_BYTES = [
    ("qwen2.5-72b-instruct", "unpadded_sizes", "awq", 41_464_774_656),
    ("qwen2.5-72b-instruct", "sizes", "awq", 41_595_518_976),
    ("qwen2.5-72b-instruct", "unpadded_sizes", "q4_k_m", 47_409_725_440),
    ("qwen2.5-72b-instruct", "sizes", "q4_k_m", 44_004_474_880),
    ("qwen2.5-72b-instruct", "sizes", "q6_k", 59_855_044_608),
    ("llama-3-70b-instruct", "sizes", "awq", 39_767_785_472),
    ("llama-3-70b-instruct", "sizes", "q4_k_m", 42_512_531_456),
    ("llama-3.1-8b-instruct", "sizes", "q4_k_m", 4_912_898_304),
    ("qwen2.5-7b-instruct", "sizes", "q4_k_m", 4_677_120_000),
    ("qwen2.5-32b-instruct", "sizes", "q4_k_m", 19_845_357_568),
    ("qwen2.5-0.5b-instruct", "sizes", "q4_k_m", 391_859_712),
    ("mixtral-8x7b-instruct-v0.1", "sizes", "q4_k_m", 28_447_727_616),
    ("mixtral-8x22b-instruct-v0.1", "sizes", "q4_k_m", 85_598_035_968),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QLOCAL_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("QLOCAL_HOME", str(tmp_path / "models"))
    (tmp_path / "config").mkdir()
    return tmp_path


def parameters(entry: Entry) -> int:
    return sum(prod(spec.shape) for spec in entry.architecture.tensors(entry.config()))


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_geometry_has_the_published_number_of_parameters(name: str, count: int) -> None:
    entry = catalog.entry(name)
    assert parameters(entry) == count
    assert entry.sizes["bf16"] == 2 * count


def test_catalogue_has_exactly_the_models_that_are_known_here() -> None:
    assert set(catalog.entries()) == set(PARAMETERS)


@pytest.mark.parametrize(("name", "table", "kind", "size"), KNOWN_BYTES)
def test_sizes_are_the_ones_other_programs_write(name: str, table: str, kind: str, size: int) -> None:
    assert getattr(catalog.entry(name), table)[kind] == size


def test_only_the_72b_with_its_odd_ffn_is_padded() -> None:
    padded = {name for name, entry in catalog.entries().items() if entry.unpadded_sizes}
    assert padded == {"qwen2-72b-instruct", "qwen2.5-72b-instruct"}


def test_yarn_is_listed_where_the_makers_document_it() -> None:
    with_yarn = {name for name, entry in catalog.entries().items() if entry.yarn}
    assert {name.partition("-")[0] for name in with_yarn} == {"qwen2", "qwen2.5"}
    assert "qwen2.5-3b-instruct" not in with_yarn and "qwen2.5-7b-instruct" in with_yarn


def test_own_file_is_laid_over_field_by_field(folder: Path) -> None:
    (folder / "config" / "models.toml").write_text(
        '["qwen2.5-7b-instruct"]\nrepository = "me/mine"\n["qwen2.5-7b-instruct".config]\nvocab_size = 151646\n'
        '["own"]\nrepository = "a/b"\nlicence = "MIT"\ncontext = 10\n["own".config]\nmodel_type = "nothing"\n'
    )
    entry = catalog.entry("Qwen2.5-7B-Instruct")
    assert entry.repository == "me/mine" and entry.config().vocab_size == 151_646
    assert entry.config().num_hidden_layers == 28
    with pytest.raises(ConfigError, match=r"models.toml: own.*'nothing' is not supported"):
        catalog.entry("own").config()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[x]\nrepository = 3\n", "repository is 3"),
        ("[x]\nlicense = 'MIT'\n", "unknown key 'license'. Did you mean 'licence'"),
        ("[x]\nlicence = 'MIT'\n", "repository is missing"),
        ("context = 3\n", "outside an entry"),
        ("[", "not readable as TOML"),
    ],
)
def test_mistakes_in_the_own_file_are_named(folder: Path, text: str, words: str) -> None:
    (folder / "config" / "models.toml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        catalog.entries()


def test_model_is_a_path_or_a_name_in_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = folder / "models"
    plain = tiny.write_checkpoint(home / "plain")
    nested = tiny.write_checkpoint(home / "several" / "gptq")
    (home / "several" / "several-q4_0.gguf").write_bytes(b"GGUF")
    (home / "file.gguf").write_bytes(b"GGUF")
    (home / "half.partial").mkdir()
    assert catalog.resolve(str(plain)) == plain
    monkeypatch.chdir(home)
    assert catalog.resolve("./plain") == plain
    monkeypatch.chdir(folder)
    assert catalog.resolve("plain") == plain
    assert catalog.resolve("several") == nested
    assert catalog.resolve("several/gptq") == nested
    assert catalog.resolve("file") == catalog.resolve("file.gguf") == home / "file.gguf"
    assert set(catalog.installed()) == {"plain", "several/gptq", "several/several-q4_0", "file"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("qwen2.5-72b-instruct", "in the catalogue, but not in .*qlocal pull"),
        ("qwen2.5-72b-instrukt", "Did you mean 'qwen2.5-72b-instruct'"),
        ("zzz", "qlocal models list"),
        ("/no/such/path", "no checkpoint at '/no/such/path'"),
        ("../outside", "no checkpoint at"),
    ],
)
def test_unknown_model_is_answered_with_what_to_do(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        catalog.resolve(name)


def test_names_on_screen_say_which_model_a_format_folder_holds() -> None:
    assert catalog.display_name(Path("/m/qwen/awq")) == "qwen/awq"
    assert catalog.display_name(Path("/m/qwen-q4_0.gguf")) == "qwen-q4_0"


def test_sizes_match_llama_quantize_for_every_shared_type(shared_data: Path) -> None:
    known = json.loads((shared_data / "formats" / "llama_quant_mix.json").read_text())
    names = {
        "qwen2.5-72b": ("qwen2.5-72b-instruct", "unpadded_sizes"),
        "qwen2.5-72b-pad29696": ("qwen2.5-72b-instruct", "sizes"),
        "llama-3-70b": ("llama-3-70b-instruct", "sizes"),
        "llama-3.1-8b": ("llama-3.1-8b-instruct", "sizes"),
        "qwen2.5-7b": ("qwen2.5-7b-instruct", "sizes"),
        "qwen2.5-32b": ("qwen2.5-32b-instruct", "sizes"),
        "qwen2.5-0.5b": ("qwen2.5-0.5b-instruct", "sizes"),
        "mixtral-8x7b": ("mixtral-8x7b-instruct-v0.1", "sizes"),
        "mixtral-8x22b": ("mixtral-8x22b-instruct-v0.1", "sizes"),
    }
    compared = 0
    for key, (name, table) in names.items():
        for kind, size in getattr(catalog.entry(name), table).items():
            found = known[key]["ftypes"].get(f"{kind.upper()}+imatrix") or known[key]["ftypes"].get(kind.upper())
            if found is not None:
                assert size == found["tensor_bytes"], (name, kind)
                compared += 1
    assert compared >= 40
