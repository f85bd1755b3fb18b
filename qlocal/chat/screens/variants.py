"""Choose another variant of the model that is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from qlocal.chat import token_words, words
from qlocal.chat.languages import t
from qlocal.chat.link_state import Variant
from qlocal.chat.screens.picker import Line, Picker


class VariantScreen(Picker[Variant]):
    """Returns a variant."""

    def __init__(self, variants: Sequence[Variant]) -> None:
        lines = [Line(one.name, token_words.variant_detail(one), one) for one in variants]
        super().__init__(t(words.VARIANTS), lines, t(words.NO_VARIANT))
