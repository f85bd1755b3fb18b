"""On valid files of any shape our readers and the formats' own packages tell the same of every tensor."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors

from qlocal.formats.gguf_reader import read_gguf
from qlocal.formats.safetensors_file import read_header
from tests.fuzz import files
from tests.fuzz.lies import Liar

NUMBERS = [pytest.param(500), pytest.param(10_000, marks=pytest.mark.slow)]


def truthful(seed: str) -> Liar:
    return Liar(Random(seed), share=0.0)


@pytest.mark.parametrize("number", NUMBERS)
def test_gguf_files_are_read_as_the_gguf_package_reads_them(number: int, tmp_path: Path) -> None:
    path, compared = tmp_path / "x.gguf", 0
    for index in range(number):
        written = files.gguf(truthful(f"gguf {number} {index}"))
        path.write_bytes(written.content)
        ours, theirs = read_gguf(path), gguf.GGUFReader(path)
        assert [t.name for t in theirs.tensors] == list(ours.tensors)
        for tensor in theirs.tensors:
            found = ours.tensors[tensor.name]
            assert found.ggml_type == tensor.tensor_type
            assert found.shape == tuple(int(n) for n in tensor.shape)[::-1]
            assert (found.offset, found.num_bytes) == (tensor.data_offset, tensor.n_bytes)
            assert found.file.read(found.offset, found.num_bytes) == np.ascontiguousarray(tensor.data).tobytes()
            compared += 1
        for name, value in written.values.items():
            assert ours.metadata[name].value == value == _plain(theirs.get_field(name).contents())
    assert compared > number


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("number", NUMBERS)
def test_safetensors_files_are_read_as_the_library_reads_them(number: int, tmp_path: Path) -> None:
    path, compared = tmp_path / "x.safetensors", 0
    for index in range(number):
        content = files.safetensors(truthful(f"safetensors {number} {index}")).content
        path.write_bytes(content)
        ours, theirs = read_header(path), dict(safetensors.deserialize(content))
        assert set(ours) == set(theirs)
        for name, tensor in theirs.items():
            found = ours[name]
            assert (found.dtype, list(found.shape)) == (tensor["dtype"], tensor["shape"])
            assert found.file.read(found.offset, found.num_bytes) == bytes(tensor["data"])
            compared += 1
    assert compared > number
