"""Faster ways through stock Keras layers, and compiled functions; results, weights and files stay the same."""

import importlib

_MODULES = {
    "compile_function": "compile",
    "inference_call": "layers",
    "inference_function": "compile",
    "keep_freed_memory": "memory",
    "recompile_functions": "compile",
    "report": "reports",
    "set_compiler_flags": "layers",
    "undo": "layers",
    "use_compilation_cache": "compilation_cache",
    "use_fast_paths": "layers",
}


def __getattr__(name):
    if name in _MODULES:
        return getattr(importlib.import_module(f"zoo.fast_paths.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'zoo.fast_paths' has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_MODULES])
