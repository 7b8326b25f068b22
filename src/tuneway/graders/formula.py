"""`calculate_output` of a multi grader: arithmetic over the names of its graders, by a parser of our own.

As in OpenAI's guide to graders: `+ - * / ^`, parentheses, and the functions min, max, abs, floor, ceil, exp, sqrt and
log. `^` binds tighter than a sign and groups to the right. All numbers are floats; nothing is ever given to `eval`.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

MAX_LENGTH = 4096
MAX_DEPTH = 64
"""Parentheses, signs and powers inside each other."""

_TOKEN = re.compile(r"\s*(?:(\d+\.?\d*(?:[eE][+-]?\d{1,3})?|\.\d+(?:[eE][+-]?\d{1,3})?)|([^\W\d]\w*)|([-+*/^(),]))")
_SUMS: Mapping[str, Callable[[float, float], float]] = {"+": operator.add, "-": operator.sub}
_PRODUCTS: Mapping[str, Callable[[float, float], float]] = {"*": operator.mul, "/": operator.truediv}
_FUNCTIONS: Mapping[str, Callable[..., float]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
_OF_MANY = ("min", "max")

Step = float | str | tuple[Callable[..., float], int]


class Malformed(Exception):
    """The text is no formula; the message says what is wrong."""


class NoValue(Exception):
    """The formula has no finite value for these numbers: a division by zero, a root of less than zero, an overflow."""


@dataclass(frozen=True, slots=True)
class Formula:
    """In postfix order: numbers, names of graders, and functions with the number of their arguments."""

    steps: tuple[Step, ...]

    def value(self, rewards: Mapping[str, float]) -> float:
        """`rewards` has every name that the formula was parsed with. Raises NoValue."""
        stack: list[float] = []
        try:
            for step in self.steps:
                if isinstance(step, tuple):
                    function, count = step
                    arguments = stack[-count:]
                    del stack[-count:]
                    stack.append(float(function(*arguments)))
                else:
                    stack.append(rewards[step] if isinstance(step, str) else step)
                if not math.isfinite(stack[-1]):
                    raise NoValue
        except (ArithmeticError, ValueError):
            raise NoValue from None
        return stack[-1]


def parse(text: str, names: Collection[str]) -> Formula:
    """Raises Malformed, also for a name that is neither a function nor one of `names`."""
    if len(text) > MAX_LENGTH:
        raise Malformed(f"it has {len(text)} characters, and at most {MAX_LENGTH} are read")
    parser = _Parser(_tokens(text), names)
    parser.sum()
    if parser.next:
        raise Malformed(f"'{parser.next}' is unexpected")
    return Formula(tuple(parser.steps))


def _tokens(text: str) -> list[str]:
    found, at, end = [], 0, len(text.rstrip())
    while at < end:
        token = _TOKEN.match(text, at)
        if token is None:
            raise Malformed(f"'{text[at:].strip()[:20]}' cannot be read; it takes + - * / ^ ( ) , numbers and names")
        found.append(token[0].strip())
        at = token.end()
    return found


class _Parser:
    """Recursive descent; what it reads is added to `steps`."""

    def __init__(self, tokens: list[str], names: Collection[str]) -> None:
        self._tokens = tokens[::-1]
        self._names = names
        self._depth = 0
        self.steps: list[Step] = []

    @property
    def next(self) -> str:
        """Empty at the end."""
        return self._tokens[-1] if self._tokens else ""

    def _take(self) -> str:
        return self._tokens.pop() if self._tokens else ""

    def sum(self) -> None:
        self._chain(_SUMS, self._product)

    def _product(self) -> None:
        self._chain(_PRODUCTS, self._signed)

    def _chain(self, operators: Mapping[str, Callable[[float, float], float]], operand: Callable[[], None]) -> None:
        operand()
        while (sign := self.next) in operators:
            self._take()
            operand()
            self.steps.append((operators[sign], 2))

    def _signed(self) -> None:
        """Everything that nests passes here."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise Malformed(f"it is nested more than {MAX_DEPTH} deep")
        if self.next in _SUMS:
            sign = self._take()
            self._signed()
            if sign == "-":
                self.steps.append((operator.neg, 1))
        else:
            self._power()
        self._depth -= 1

    def _power(self) -> None:
        self._atom()
        if self.next == "^":
            self._take()
            self._signed()
            self.steps.append((math.pow, 2))

    def _atom(self) -> None:
        read = self._take()
        if read == "(":
            self.sum()
            self._expect(")")
        elif read[:1].isdecimal() or read.startswith("."):
            self.steps.append(float(read))
        elif self.next == "(" and read in _FUNCTIONS:
            self._call(read)
        elif read in self._names:
            self.steps.append(read)
        elif read == "" or read in "+-*/^(),":
            raise Malformed(f"a value is missing before '{read}'" if read else "it ends where a value is missing")
        else:
            raise Malformed(f"'{read[:60]}' is no name of a grader and no function")

    def _call(self, name: str) -> None:
        self._take()
        self.sum()
        count = 1
        while name in _OF_MANY and self.next == ",":
            self._take()
            self.sum()
            count += 1
        self._expect(")")
        self.steps.append((_FUNCTIONS[name] if count > 1 or name not in _OF_MANY else float, count))

    def _expect(self, token: str) -> None:
        if (found := self._take()) != token:
            raise Malformed(f"'{token}' is missing" + (f" before '{found}'" if found else ""))
