"""JAX outside `jit` compiles each operator for each shape: unoptimised, since here that takes longer than running it.

What a test compiles on purpose (`autodiff.value_and_gradients`) is optimised as usual.
"""

from tests.keras.backend.autodiff import BACKEND

if BACKEND == "jax":
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
