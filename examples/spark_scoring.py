"""Score a table of any size with Spark.

spark-submit examples/spark_scoring.py BUNDLE 'rows/*.parquet' ANSWERS
"""

import sys
from collections.abc import Iterator

import pyarrow
from pyspark.sql import SparkSession
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema

from serve import TableClassifier


def main(bundle: str, rows: str, answers: str) -> None:
    """Classify the `rows` of parquet files, and write them as parquet with their `answers`."""
    spark = SparkSession.builder.getOrCreate()
    classify = TableClassifier(bundle, num_threads=1)  # loads once in each Python worker; the path must be there
    table = spark.read.parquet(rows)

    def classify_batches(batches: Iterator[pyarrow.RecordBatch]) -> Iterator[pyarrow.RecordBatch]:
        for batch in batches:
            yield from classify(pyarrow.Table.from_batches([batch])).to_batches()

    schema = from_arrow_schema(classify.schema(to_arrow_schema(table.schema)))
    table.mapInArrow(classify_batches, schema).write.parquet(answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
