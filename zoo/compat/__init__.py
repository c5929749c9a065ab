"""Every private name of Keras, TensorFlow, JAX and PyTorch that the zoo uses, each inside one function.

A private name has no promise behind it: a release may take it away. Here each function says what it is for, which
release it was written for, and what the public way would be; when the name is gone, it raises `CompatError`. One module
a framework, imported where it is used, so that no framework is loaded for another's sake.
`tests/test_private_names.py` holds that there are none outside this folder.
"""

import importlib
from typing import Any

from zoo.errors import UserError


class CompatError(UserError):
    """A framework no longer has a private name that the zoo needs."""


def private(owner: Any, path: str) -> Any:
    """Look up a private name.

    Args:
        owner: an object, or the name of a package.
        path: attributes from there, e.g. "src.backend.common.global_state"; modules are imported.

    Raises:
        CompatError: if it is gone.
    """
    found = importlib.import_module(owner) if isinstance(owner, str) else owner
    for name in path.split("."):
        try:
            found = _attribute_or_module(found, name)
        except (AttributeError, ImportError) as error:
            package = owner if isinstance(owner, str) else type(owner).__module__
            package = package.partition(".")[0]
            what = owner if isinstance(owner, str) else type(owner).__name__
            raise CompatError(
                f"{package} {_version(package)} has no {what}.{path}, which this version of the zoo needs: install the "
                f"release of {package} that its pyproject.toml names."
            ) from error
    return found


def _attribute_or_module(owner, name):
    try:
        return getattr(owner, name)
    except AttributeError:
        if not hasattr(owner, "__path__"):
            raise
        return importlib.import_module(f"{owner.__name__}.{name}")


def _version(package):
    """The version of an imported package; the distribution may have another name, such as keras-nightly."""
    try:
        return importlib.import_module(package).__version__
    except (ImportError, AttributeError):
        return ""
