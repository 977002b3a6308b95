"""Reads the pickles of a PyTorch file as data, without executing them.

A pickle is a program for a stack machine, and may call any function of any module. `pickle.Unpickler` can
forbid functions, but it still sets attributes, and hashes and allocates what the file says. The machine here
has the operations that dicts of tensors are made of, and no other.

Sources: Python's Lib/pickletools.py for the operations; torch/_weights_only_unpickler.py for the idea.
"""

import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any

ARGUMENTS = frozenset((  # operations that push their argument
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING",  # of Python 2
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
))  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
MARK = object()  # on the stack: the items of a tuple, list or dict follow


class Machine:
    """Runs pickles.

    Args:
        parts: what a pickle may name, by "module name"; it may call those that are callable.
        persistent: makes the object of a persistent id.
    """

    def __init__(self, parts: Mapping[str, Any], persistent: Callable[[Any], Any]):
        self._parts, self._persistent = parts, persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, file: IO[bytes]) -> Any:
        """Returns the object of the next pickle in a file; the file is then behind that pickle.

        Raises:
            UnpicklingError, ValueError, LookupError, TypeError: if it is damaged, or makes anything but
                dicts, lists and tuples of parts, strings and numbers.
        """
        self._stack, self._memo = [], {}
        for operation, argument, _ in pickletools.genops(file):
            self._step(operation.name, argument)
        (result,) = self._stack
        return result

    def _step(self, name: str, argument: Any) -> None:
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "APPEND":
                self._extend([self._stack.pop()])
            case "SETITEM":
                value, key = self._stack.pop(), self._stack.pop()
                self._extend([key, value])
            case "APPENDS" | "SETITEMS":
                self._extend(self._items())
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self._stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._stack[-1]
            case "BUILD":  # attributes, as the _metadata of a state dict
                self._stack.pop()
            case _:
                self._stack.append(self._make(name, argument))

    def _make(self, name: str, argument: Any) -> Any:
        """Makes what an operation pushes."""
        match name:
            case _ if name in ARGUMENTS:
                return argument
            case _ if name in CONSTANTS:
                return CONSTANTS[name]
            case "MARK":
                return MARK
            case "EMPTY_DICT":
                return {}
            case "EMPTY_LIST":
                return []
            case "LIST":
                return self._items()
            case "DICT":
                return by_name(self._items())
            case "TUPLE":
                return tuple(self._items())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                return tuple([self._stack.pop() for _ in range(int(name[-1]))][::-1])
            case "GET" | "BINGET" | "LONG_BINGET":
                return self._memo[argument]
            case "GLOBAL":
                return self._part(argument)
            case "STACK_GLOBAL":
                last, module = self._stack.pop(), self._stack.pop()
                return self._part(f"{module} {last}" if type(module) is type(last) is str else "? ?")
            case "REDUCE":
                arguments, part = self._stack.pop(), self._stack.pop()
                if callable(part) and isinstance(arguments, tuple):
                    return part(*arguments)
            case "BINPERSID":
                return self._persistent(self._stack.pop())
        raise pickle.UnpicklingError(f"it has the operation {name}, which no tensor needs")

    def _part(self, name: str) -> Any:
        if name not in self._parts:
            raise pickle.UnpicklingError(
                f"it contains {name.replace(' ', '.')}, which is not part of a tensor"
            )
        return self._parts[name]

    def _items(self) -> list[Any]:
        """Pops what was pushed since the last mark."""
        items = []
        while (item := self._stack.pop()) is not MARK:
            items.append(item)
        return items[::-1]

    def _extend(self, items: list[Any]) -> None:
        """Adds items to the list on the stack, or keys and values to the dict."""
        if type(target := self._stack[-1]) is list:
            target.extend(items)
        elif type(target) is dict:
            target.update(by_name(items))
        else:
            raise pickle.UnpicklingError("it fills what is neither a list nor a dict")


def by_name(items: list[Any]) -> dict[str, Any]:
    """Makes a dict of keys and values that take turns; only strings are hashed."""
    if not all(isinstance(key, str) for key in items[::2]):
        raise pickle.UnpicklingError("it has keys that are not names")
    return dict(zip(items[::2], items[1::2], strict=True))
