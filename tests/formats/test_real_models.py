"""Published files and real BF16 folders, from the folder that QLOCAL_REAL_MODELS names."""

import time

import gguf
import pytest
import torch

from qlocal.formats.checkpoint import open_checkpoint
from qlocal.formats.gguf_reader import read_gguf
from qlocal.formats.gguf_vocabulary import vocabulary_for_gguf
from qlocal.weights import BlockWeight, DenseWeight
from tests.real_models import real_model

pytestmark = pytest.mark.real
GGUF_FILES = ["smollm2-135m.gguf", "qwen2.5-coder-0.5b.gguf", "qwen2.5-coder-1.5b.gguf"]
FOLDERS = ["smollm2-135m", "qwen2.5-coder-0.5b"]


@pytest.mark.parametrize("name", GGUF_FILES)
def test_a_published_file_reads_as_the_gguf_package_reads_it(name: str) -> None:
    path = real_model(name)
    ours, reference = read_gguf(path), gguf.GGUFReader(path)
    assert [t.name for t in reference.tensors] == list(ours.tensors)
    for tensor in reference.tensors:
        own = ours.tensors[tensor.name]
        found = (own.offset, own.num_bytes, own.ggml_type.name, own.shape)
        shape = tuple(int(d) for d in tensor.shape[::-1])
        assert found == (tensor.data_offset, tensor.n_bytes, tensor.tensor_type.name, shape)
    tokens = ours.metadata["tokenizer.ggml.tokens"].value
    field = reference.fields["tokenizer.ggml.tokens"]
    assert tokens[:1000] == [str(bytes(field.parts[i]), "utf-8") for i in field.data[:1000]]


@pytest.mark.parametrize("name", GGUF_FILES)
def test_every_weight_of_a_published_file_is_mapped(name: str) -> None:
    start = time.perf_counter()
    checkpoint = open_checkpoint(real_model(name))
    assert time.perf_counter() - start < 1
    for tensor, stored in checkpoint.tensors.items():
        weight = checkpoint.read(tensor)
        assert weight.shape == stored.shape
        data = weight.blocks if isinstance(weight, BlockWeight) else weight.data
        assert data.nbytes == stored.num_bytes
    assert checkpoint.tokenizer().chat_template


@pytest.mark.parametrize("name", FOLDERS)
def test_a_published_file_dequantizes_to_nearly_its_source(name: str) -> None:
    """Rows in the wrong order, or blocks of the wrong tensor, would have nothing in common with the source."""
    quantized, source = open_checkpoint(real_model(f"{name}.gguf")), open_checkpoint(real_model(name))
    for tensor in source.tensors:
        if source.tensors[tensor].spec.layer not in (0, 5):
            continue
        weight, expected = quantized.read(tensor), source.read(tensor).data.float()
        data = weight.data if isinstance(weight, DenseWeight) else weight.blocks
        data = data if weight.row_map is None else data[weight.row_map]
        if isinstance(weight, BlockWeight):
            kind = gguf.GGMLQuantizationType(int(weight.ggml_type))
            data = torch.from_numpy(gguf.quants.dequantize(data.numpy(), kind))
        similarity = torch.nn.functional.cosine_similarity(data.float().flatten(), expected.flatten(), dim=0)
        assert similarity > 0.98, tensor


@pytest.mark.parametrize("name", FOLDERS)
def test_a_vocabulary_written_from_a_folder_is_the_publishers(name: str) -> None:
    source, published = open_checkpoint(real_model(name)), open_checkpoint(real_model(f"{name}.gguf")).tokenizer()
    stop_ids = source.generation_defaults().stop_ids
    ours, theirs = vocabulary_for_gguf(source.tokenizer(), source.config, stop_ids), published.gguf_vocabulary
    assert theirs is not None
    assert (ours.model, ours.pre, ours.eos_token_id) == (theirs.model, theirs.pre, theirs.eos_token_id)
    assert ours.merges == theirs.merges
    published_tokens = [(t, k) for t, k in zip(theirs.tokens, theirs.token_types, strict=True) if k != 5]
    assert [(t, k) for t, k in zip(ours.tokens, ours.token_types, strict=True) if k != 5] == published_tokens
