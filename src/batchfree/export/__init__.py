"""A study's numbers in the files of other tools.

    from batchfree.export import export
    export(Path("runs/norm-batch"), "parquet")

"csv" and "parquet" are two tables, cells and epochs; "tensorboard" and "mlflow" are one run per cell. Nothing here
needs a framework.
"""

from batchfree.export._export import FORMATS, Format, export

__all__ = ["FORMATS", "Format", "export"]
