"""The peak is measured with every instruction set, and is above what memory allows."""

from __future__ import annotations

from qlocal.kernels import benchmark, native


def test_every_instruction_set_counts_its_operations(isa: str) -> None:
    peaks = benchmark.peak_operations()
    assert peaks is not None
    # The slowest CPU with AVX2 does more than a thousandth of a million million operations a second.
    assert peaks.int8 > 1e9 and peaks.bf16 > 1e9


def test_the_plain_c_function_counts_what_all_pieces_did(isa: str) -> None:
    library = native.load()
    assert isinstance(library, native.Library)
    peak = library.functions.qlocal_peak
    for kind in (0, 1):
        once, twice = (int(peak(library.isa, kind, rounds)) for rounds in (100, 200))
        assert twice == 2 * once > 0
