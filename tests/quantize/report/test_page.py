import re

import pytest

from quantize.report.page import html_page
from quantize.report.summary import bits_by_layer, card, place


def report() -> dict:  # type: ignore[type-arg]
    return {
        "model": "<script>alert(1)</script>",
        "result": "awq",
        "tool": "qlocal 1",
        "method": "AWQ",
        "calibration": "Calibrated.",
        "notes": ["a & b"],
        "tensor_bytes": 1000,
        "bits_per_weight": 4.25,
        "bytes_by_type": {"awq": 900, "f16": 100},
        "bits_by_layer": {"0": 4.2, "1": 4.3, "head": 16.0},
        "losses": {"model.layers.0.mlp.up_proj": 0.01, "model.layers.1.mlp.up_proj": 0.02},
        "seconds_by_unit": {"0": 1.0, "1": 2.0, "head": 0.5},
        "seconds": 3.5,
        "source_sha256": {"model.safetensors": "ab" * 32},
    }


def gate() -> dict:  # type: ignore[type-arg]
    return {
        "passed": False,
        "failures": ["mean KL <b> is above"],
        "limits": {
            "max_kl": 0.5,
            "max_linear_error": 0.25,
            "min_stop_ratio": 0.5,
            "min_top1": 0.0,
            "max_ppl_ratio": None,
        },
        "text": "9 tokens.",
        "dtype": "float32",
        "seconds": 1.0,
        "mean_kl": None,
        "interval": [None, None],
        "median_kl": 0.1,
        "p99_kl": 1.0,
        "max_kl": 2.0,
        "top1": 0.9,
        "ppl": None,
        "ppl_source": 5.0,
        "stops": {"count": 4, "source": 0.9, "candidate": 0.1, "can_tell": True},
        "linear_errors": {
            "model.layers.0.block_sparse_moe.experts.0.w1": 0.01,
            "model.layers.0.block_sparse_moe.experts.1.w1": 0.5,
            "model.layers.1.block_sparse_moe.experts.0.w1": None,
            "lm_head": 0.001,
        },
    }


@pytest.mark.parametrize("verified", [False, True])
def test_page_fetches_nothing_runs_nothing_and_escapes_what_it_is_given(verified: bool) -> None:
    page = html_page(report() | ({"verify": gate()} if verified else {}))
    assert "<script" not in page and "&lt;script&gt;" in page and "a &amp; b" in page
    assert re.findall(r"(?:src|href)=|url\(|@import", page) == []
    assert "default-src 'none'" in page
    assert "ab" * 32 in page


def test_page_shows_verdict_limits_and_the_worst_linears_first() -> None:
    page = html_page(report() | {"verify": gate()})
    assert "mean KL &lt;b&gt; is above" in page and "at most 0.25" in page
    worst = page.index("layer 1 block_sparse_moe.experts.0.w1")
    assert worst < page.index("layer 0 block_sparse_moe.experts.1.w1", page.index("largest</h2>"))
    assert "w1, layer 0: 0.5<" in page and "w1, layer 1: not a number" in page


def test_page_without_a_gate_says_so() -> None:
    assert "The gate has not run" in html_page(report())


def test_card_tells_what_the_gate_found() -> None:
    assert "Against its source" not in card(report())
    text = card(report() | {"verify": gate()})
    assert "The gate failed: mean KL" in text and "| stop token at 4 ends of turns | 0.1000 |" in text


def test_bits_are_told_by_layer_with_the_rest_last() -> None:
    sizes = [(None, 20, 10), (1, 5, 10), (0, 10, 20), (0, 5, 10)]
    assert list(bits_by_layer(sizes).items()) == [("0", 4.0), ("1", 4.0), ("head", 16.0)]


def test_places_are_told_by_layer() -> None:
    assert place("model.layers.12.mlp.up_proj") == "layer 12 mlp.up_proj"
    assert place("model.embed_tokens") == "embed_tokens" and place("lm_head") == "lm_head"
