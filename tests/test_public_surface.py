"""`__all__` is what the package offers: no more, no less, each with a docstring."""

import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import convattn


def test_all_is_sorted_and_equals_the_public_names():
    public = [
        name for name, value in vars(convattn).items() if not name.startswith("_") and not isinstance(value, ModuleType)
    ]
    assert convattn.__all__ == sorted(public)


def test_the_functions_that_explain_come_with_the_package():
    assert convattn.public.explain is convattn.explain
    assert convattn.explain.__all__ == sorted(convattn.explain.__all__)


@pytest.mark.parametrize("name", convattn.explain.__all__)
def test_a_function_that_explains_is_documented(name):
    value = getattr(convattn.explain, name)
    assert inspect.getdoc(value)
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        assert signature.return_annotation is not signature.empty
        assert all(parameter.annotation is not parameter.empty for parameter in signature.parameters.values())


@pytest.mark.parametrize("name", convattn.__all__)
def test_a_public_name_is_documented(name):
    value = getattr(convattn, name)
    assert value.__module__.startswith("convattn.")
    assert inspect.getdoc(value)
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        assert signature.return_annotation is not signature.empty
        assert all(parameter.annotation is not parameter.empty for parameter in signature.parameters.values())


@pytest.mark.parametrize("module", [info.name for info in pkgutil.walk_packages(convattn.__path__, "convattn.")])
def test_a_module_says_what_it_is_and_offers_what_it_lists(module):
    imported = importlib.import_module(module)
    assert imported.__doc__
    for name in getattr(imported, "__all__", ()):
        assert hasattr(imported, name), f"{module}.__all__ lists {name}, which is not there"
