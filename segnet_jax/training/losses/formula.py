"""Parse a loss formula, such as `ce(smoothing=0.1) + 0.5*dice`: a weighted sum of losses with parameters.

formula   = term { "+" term }
term      = [ number "*" ] name [ "(" parameter { "," parameter } ")" ]
parameter = name "=" number
"""

import difflib
import inspect
import math
import re
from typing import NamedTuple

from segnet_jax.system.errors import UserError
from segnet_jax.training.losses import multi_label as multi_label_losses
from segnet_jax.training.losses.loss import Loss, weighted_sum
from segnet_jax.training.losses.table import LOSSES

_TOKEN = re.compile(
    r"(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_][A-Za-z_0-9-]*)|(?P<sign>[-+*(),=])"
)
_MAX_LENGTH = 500
_MAX_FACTOR = 1e6


class _Token(NamedTuple):
    kind: str  # "number", "name", "sign" or "end"
    text: str
    start: int


def parse_loss(formula: str, multi_label: bool = False) -> Loss:
    """Parse the formula of a loss for class ids, or for labels with several classes per pixel.

    Raises:
      UserError: If the formula is invalid; the message names the position and what is expected.
    """
    return _Parser(formula, multi_label).loss()


class _Parser:
    def __init__(self, formula: str, multi_label: bool):
        self._formula = formula
        self._losses = multi_label_losses.LOSSES if multi_label else LOSSES
        if len(formula) > _MAX_LENGTH:
            raise UserError(f"--loss has {len(formula)} characters; use at most {_MAX_LENGTH}")
        self._tokens, start = [], 0
        while start < len(formula):
            if formula[start].isspace():
                start += 1
                continue
            match = _TOKEN.match(formula, start)
            if match is None:
                raise self._error(start, "unexpected character")
            self._tokens.append(_Token(str(match.lastgroup), match[0], start))
            start = match.end()
        self._tokens.append(_Token("end", "", len(formula)))

    def loss(self) -> Loss:
        terms = [self._term()]
        while self._next().kind != "end":
            self._take("+", 'expected "+" or the end')
            terms.append(self._term())
        return weighted_sum(terms)

    def _term(self) -> tuple[float, Loss]:
        factor = 1.0
        if self._next().kind == "number":
            token = self._next()
            factor = self._number()
            if not 0 < factor <= _MAX_FACTOR:
                raise self._error(token.start, f"a factor must be above 0 and at most {_MAX_FACTOR:g}")
            self._take("*", f'expected "*" after {token.text}')
        token = self._take("name", f"expected a loss: {', '.join(self._losses)}")
        if token.text not in self._losses:
            unknown = "loss for one class per pixel" if token.text in LOSSES else "unknown loss"
            raise self._error(token.start, f"{unknown} {token.text}; {_nearest(token.text, self._losses)}")
        parameters = self._parameters(token.text) if self._next().text == "(" else {}
        try:
            return factor, self._losses[token.text](**parameters)
        except ValueError as error:
            raise self._error(token.start, str(error)) from None

    def _parameters(self, loss: str) -> dict[str, float]:
        known = list(inspect.signature(self._losses[loss]).parameters)
        parameters, sign = {}, self._take("(", "")
        while sign.text != ")":
            name = self._take("name", f"expected a parameter of {loss}" if known else f"{loss} has no parameters")
            if name.text not in known:
                message = f"unknown parameter {name.text} of {loss}; {_nearest(name.text, known)}"
                raise self._error(name.start, message if known else f"{loss} has no parameters")
            if name.text in parameters:
                raise self._error(name.start, f"{name.text} is given twice")
            self._take("=", f'expected "=" after {name.text}')
            parameters[name.text] = self._number()
            sign = self._take(",)", 'expected "," or ")"')
        return parameters

    def _number(self) -> float:
        token = self._take("number", "expected a number")
        if not math.isfinite(value := float(token.text)):
            raise self._error(token.start, "this number is too large")
        return value

    def _next(self) -> _Token:
        return self._tokens[0]

    def _take(self, expected: str, message: str) -> _Token:
        """Consume the next token, which must have the expected kind ("name" or "number") or be an expected sign."""
        token = self._next()
        if token.kind != expected and not (token.kind == "sign" and token.text in expected):
            raise self._error(token.start, message)
        return self._tokens.pop(0)

    def _error(self, start: int, message: str) -> UserError:
        rest = self._formula[start : start + 20]
        position = f'at character {start + 1}, "{rest}"' if rest else "at its end"
        return UserError(f'--loss "{self._formula}" is invalid {position}: {message}')


def _nearest(name: str, known) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"nearest: {near[0]}; known: {', '.join(known)}" if near else f"known: {', '.join(known)}"
