"""Registration with the Auto classes of transformers, when and only if a program imports them.

`import slap_fast` must stay cheap, and transformers may be imported before or after it. So the configuration class is
registered after the import of the module that has its table, and the other classes when a configuration is created:
every Auto class creates one before it looks for a model, a processor or a tokenizer.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_TABLE = "transformers.models.auto.configuration_auto"


def register_when_imported() -> None:
    """Register `SlapConfig` now if transformers' table of configurations is loaded, else when it is."""
    if (module := sys.modules.get(_TABLE)) is not None and hasattr(module, "CONFIG_MAPPING"):
        _register_config(module)
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def _register_config(module: ModuleType) -> None:
    from slap_fast.models.hugging_face.configuration import SlapConfig

    module.CONFIG_MAPPING.register(SlapConfig.model_type, SlapConfig, exist_ok=True)


class _AfterImport:
    """Import hook that finds the module as usual, and registers after its code has run."""

    is_searching = False

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _TABLE or self.is_searching:
            return None
        self.is_searching = True  # else the search would end here again
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.is_searching = False
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            _register_config(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec


def register_classes() -> None:
    """Register model, feature extractor, tokenizer and processor for `SlapConfig`."""
    from transformers import AutoFeatureExtractor, AutoModel, AutoProcessor, AutoTokenizer

    from slap_fast.models.hugging_face.configuration import SlapConfig
    from slap_fast.models.hugging_face.modeling import SlapModel
    from slap_fast.models.hugging_face.processing import SlapFeatureExtractor, SlapProcessor, SlapTokenizer

    AutoModel.register(SlapConfig, SlapModel, exist_ok=True)
    AutoFeatureExtractor.register(SlapConfig, SlapFeatureExtractor, exist_ok=True)
    AutoTokenizer.register(SlapConfig, fast_tokenizer_class=SlapTokenizer, exist_ok=True)
    AutoProcessor.register(SlapConfig, SlapProcessor, exist_ok=True)
