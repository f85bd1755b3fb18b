"""Choose a model: what lies in the model folder or what the endpoint offers, then what could be fetched."""

from __future__ import annotations

from collections.abc import Sequence

from qlocal.chat.languages import t
from qlocal.chat.link_state import Choice
from qlocal.chat.screens.picker import Line, Picker


class ModelScreen(Picker[str]):
    """Returns a model's name."""

    def __init__(self, choices: Sequence[Choice], current: str | None) -> None:
        lines = [
            Line(choice.name, _detail(choice, current), choice.name if choice.is_here else None) for choice in choices
        ]
        super().__init__(t("Model"), lines, t("No model: get one with `qlocal pull NAME`, or start with a path."))


def _detail(choice: Choice, current: str | None) -> str:
    if choice.name == current:
        return t("in use")
    return choice.detail if choice.is_here else t("not here: {detail}").format(detail=choice.detail)
