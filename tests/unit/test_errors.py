"""Every error has a code of its own, is in the drawn tree, and the engine's errors have a farm error each."""

import pytest

from farm import errors
from worker.engine import errors as engine_errors

ENGINE = [
    cls
    for cls in vars(engine_errors).values()
    if isinstance(cls, type) and issubclass(cls, engine_errors.EngineError) and cls is not engine_errors.EngineError
]


def test_codes_are_unique_and_drawn():
    assert all(code == cls.__name__ for code, cls in errors.BY_CODE.items())
    missing = [code for code in errors.BY_CODE if code not in (errors.__doc__ or "")]
    assert not missing


def test_every_class_of_the_module_is_in_the_map():
    classes = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, errors.FarmError)]
    assert {cls.code for cls in classes} == set(errors.BY_CODE)


@pytest.mark.parametrize("cls", ENGINE, ids=lambda cls: cls.__name__)
def test_engine_errors_become_farm_errors_of_the_same_code(cls):
    error = cls("seed", "must be small") if cls is engine_errors.InvalidParameter else cls("words")
    mapped = errors.from_foreign(error)
    assert mapped is not None and mapped.code == cls.code and str(mapped) == str(error)


def test_an_unknown_exception_is_not_mapped():
    assert errors.from_foreign(KeyError("x")) is None
