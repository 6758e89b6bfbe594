"""jaxq: 4-bit weights for ONNX models, chosen from the second moments of one forward pass.

The functions here work on arrays; `jaxq.pipeline.quantize_model` works on files; ``jaxq`` and ``python -m jaxq.run``
are the command line. Importing this package loads neither JAX nor Hydra nor onnxruntime: ``__init__.pyi`` lists the
public names, and a name is imported when it is first used, so that ``jaxq --help`` is quick.
"""

import lazy_loader

from jaxq.version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
