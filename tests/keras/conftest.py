"""One process has one Keras backend: `backend/` runs once per backend, started by test_backends.py."""

import os

collect_ignore = [] if "KERAS_BACKEND" in os.environ else ["backend"]
