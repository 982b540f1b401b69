"""Settings whose names are keywords of Python, `token.try` and `environment.pass`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, create_model

from fastdb.config.validation import Settings


class _Token(Settings):
    """Trial of the token by pictures of the untrained base model."""

    @property
    def tried(self) -> bool:
        """Whether the value of `try`, which is no name in Python, asks for the trial."""
        return bool(getattr(self, "try") == "auto")


class _Environment(Settings):
    """Environment of the trainer's process."""

    @property
    def passed(self) -> tuple[str, ...]:
        """Names of the variables in `pass`, which is no name in Python."""
        names: tuple[str, ...] = getattr(self, "pass")
        return names


if TYPE_CHECKING:
    EnvironmentConfig = _Environment
    TokenConfig = _Token
else:
    # YAML reads an unquoted off as false.
    _AUTO_OR_OFF = Annotated[Literal["auto", "off"], BeforeValidator(lambda value: "off" if value is False else value)]
    _TRY = Field(
        "auto",
        description="auto: before the first step, mini or a GPU draws pictures of the instance and the class prompt, "
        "to warn of a token that hides the class; off: never. The result is the same.",
    )
    TokenConfig = create_model("TokenConfig", __base__=_Token, __doc__=_Token.__doc__, **{"try": (_AUTO_OR_OFF, _TRY)})
    _VARIABLE = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    _PASS = Field((), description="Names of further environment variables that the trainer inherits.")
    EnvironmentConfig = create_model(
        "EnvironmentConfig",
        __base__=_Environment,
        __doc__=_Environment.__doc__,
        **{"pass": (tuple[_VARIABLE, ...], _PASS)},
    )
