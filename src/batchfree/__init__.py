"""Vision networks that do not depend on the batch.

The import path picks the framework: `batchfree.torch` has the layers, `batchfree.convert` turns Batch Norm networks
into batch-free ones. `import batchfree` itself loads no framework.
"""

from importlib.metadata import version as _version

from batchfree.errors import BatchfreeError

__all__ = ["BatchfreeError", "__version__"]

__version__ = _version("batchfree")
