"""Functions that a client offers to the model, and which of them it must or may call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from qlocal.errors import RequestError
from qlocal.server.request_base import Body, Text


class Function(Body):
    """A function as the model is told of it; `parameters` is a JSON schema."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.\-]{1,128}$")
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """One entry of `tools`."""

    type: Literal["function"]
    function: Function

    def plain(self) -> dict[str, Any]:
        """Return the tool as templates print it, its fields in the order that models were trained on."""
        function: dict[str, Any] = {"name": self.function.name}
        if self.function.description is not None:
            function["description"] = self.function.description
        parameters = self.function.parameters
        function["parameters"] = {"type": "object", "properties": {}} if parameters is None else parameters
        return {"type": "function", "function": function}


class ChosenName(Body):
    """The name inside the object form of tool_choice."""

    name: str = Field(min_length=1, max_length=128)


class ChosenFunction(Body):
    """tool_choice as an object: this function and no other."""

    type: Literal["function"]
    function: ChosenName


Tools = Annotated[list[Tool], Field(max_length=128)]
ToolChoice = Literal["none", "auto", "required"] | ChosenFunction


def offered(tools: Sequence[Tool], choice: ToolChoice | None) -> list[Tool]:
    """Return the tools that may be called; RequestError where the choice does not fit them."""
    names = [tool.function.name for tool in tools]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise RequestError(f"tools names the function '{doubled}' twice", param="tools")
    if choice in (None, "auto"):
        return list(tools)
    if choice == "none":
        return []
    if not tools:
        raise RequestError("tool_choice needs tools to choose from", param="tool_choice")
    if isinstance(choice, ChosenFunction):
        chosen = [tool for tool in tools if tool.function.name == choice.function.name]
        if not chosen:
            raise RequestError(
                f"tool_choice names the function '{choice.function.name}', expected one of {', '.join(names)[:200]}",
                param="tool_choice",
            )
        return chosen
    return list(tools)
