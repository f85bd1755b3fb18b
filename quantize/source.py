"""The BF16 source: opened, held to what can be quantized, its FFN padded on the way, its values checked as read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qlocal.errors import FormatError, UnsupportedError
from qlocal.formats.base import WHOLE, Checkpoint, GenerationDefaults, Region, StoredTensor, TokenizerData
from qlocal.formats.checkpoint import open_checkpoint
from qlocal.formats.hf_checkpoint import HfCheckpoint
from qlocal.models.base import Architecture, ModelConfig, TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

    from qlocal.weights import DenseWeight

CHECK_ROWS = 4096
MAX_F16 = 65504.0


def open_source(path: Path) -> HfCheckpoint:
    """Open the folder to quantize. UnsupportedError names a source that is not plain BF16, F16 or F32 safetensors."""
    if (path / "adapter_config.json").exists():
        raise UnsupportedError(f"{path.name}: is a LoRA adapter, not a model", hint="Merge it into its base first.")
    checkpoint = open_checkpoint(path)
    if not isinstance(checkpoint, HfCheckpoint) or checkpoint.format != "bf16":
        raise UnsupportedError(
            f"{path.name}: is a {checkpoint.format.upper()} checkpoint, which is quantized already",
            hint="SOURCE is the model's folder of BF16, F16 or F32 safetensors.",
        )
    return checkpoint


class PaddedSource(Checkpoint):
    """A checkpoint as the layers see it while they are quantized: the FFN padded with zeros, every value finite."""

    def __init__(self, checkpoint: HfCheckpoint, config: ModelConfig) -> None:
        self._checkpoint = checkpoint
        self._checked: set[str] = set()
        self.path = checkpoint.path
        self.format = checkpoint.format
        self.architecture: Architecture = checkpoint.architecture
        self.config = config
        self.files = checkpoint.files
        shapes = {spec.name: spec for spec in checkpoint.architecture.tensors(config)}
        self.tensors: Mapping[str, StoredTensor] = {
            name: replace(stored, spec=shapes[name]) for name, stored in checkpoint.tensors.items()
        }

    def read(self, name: str, region: Region = WHOLE) -> DenseWeight:
        """Return a tensor, padded; FormatError names the tensor and file that hold a value which is not finite."""
        from qlocal.weights import DenseWeight

        assert region == WHOLE, "a source is quantized by one process"
        weight = self._checkpoint.read(name)
        assert isinstance(weight, DenseWeight), "open_source admits dense folders alone"
        if name not in self._checked:
            self._check_finite(name, weight.data)
            self._checked.add(name)
        return DenseWeight(_padded(weight.data, self.tensors[name].shape))

    def will_read(self, name: str) -> None:
        self._checkpoint.will_read(name)

    def read_float32(self, name: str) -> Tensor:
        """Return a tensor as a float32 copy of its own."""
        import torch

        return self.read(name).data.to(dtype=torch.float32, copy=True)

    def read_float16(self, name: str) -> Tensor:
        """Return a tensor in F16; FormatError when a value is beyond its range."""
        import torch

        data = self.read(name).data
        halves = torch.empty(data.shape, dtype=torch.float16)
        for part, half in zip(torch.split(data, CHECK_ROWS), torch.split(halves, CHECK_ROWS), strict=True):
            half.copy_(_in_range(part, name, self.file_of(name).name))
        return halves

    def bias_of(self, spec: TensorSpec) -> DenseWeight | None:
        """Return the bias of a linear, which no method changes."""
        name = f"{spec.module}.bias"
        return self.read(name) if name in self.tensors else None

    def tokenizer(self) -> TokenizerData:
        return self._checkpoint.tokenizer()

    def generation_defaults(self) -> GenerationDefaults:
        return self._checkpoint.generation_defaults()

    def file_of(self, name: str) -> Path:
        """Return the file that holds the tensor `name`."""
        return self._checkpoint.parts[name].infos["weight"].file.path

    def _check_finite(self, name: str, data: Tensor) -> None:
        import torch

        for part in torch.split(data, CHECK_ROWS):
            if not torch.isfinite(part.sum()) and not torch.isfinite(part).all():
                bad, file = int((~torch.isfinite(part)).sum()), self.file_of(name).name
                raise FormatError(
                    f"{file}: tensor '{name}' holds {bad} values that are not finite (NaN or infinity)",
                    hint="The file is damaged; fetch it again.",
                )


def _padded(data: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Append zero rows or columns up to `shape`."""
    if tuple(data.shape) == shape:
        return data
    padded = data.new_zeros(shape)
    padded[: data.shape[0], : data.shape[1]] = data
    return padded


def _in_range(part: Tensor, name: str, file: str) -> Tensor:
    largest = float(part.abs().max())
    if largest > MAX_F16:
        raise FormatError(
            f"{file}: tensor '{name}' holds {largest:.4g}, and float16 ends at {MAX_F16:g}",
            hint="AWQ and GPTQ store it in float16; choose GGUF, which keeps norms and biases in float32.",
        )
    return part
