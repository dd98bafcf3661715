"""Score a table of any size with Ray Data, in a pipeline of your own; `python -m serve.cluster` does all of a job.

python examples/ray_scoring.py BUNDLE FOLDER_OF_ROWS ANSWERS
"""

import os
import sys

os.environ["RAY_DATA_USE_DATASOURCE_V2"] = "0"  # the newer reader takes minutes to list a few small files
import ray

from serve import TableClassifier


def main(bundle: str, rows: str, answers: str) -> None:
    """Classify the `rows` of parquet files, and write them as parquet with their `answers`."""
    ray.init(address="local")  # "auto" joins a cluster
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    num_actors = max(1, int(ray.cluster_resources()["CPU"]) - 1)  # Ray waits for ever if none is left for reading
    (
        ray.data.read_parquet(rows, override_num_blocks=4 * num_actors)  # else few files keep few actors busy
        .map_batches(
            TableClassifier,
            fn_constructor_args=[bundle],
            fn_constructor_kwargs={"num_threads": 1},
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=num_actors),
            num_cpus=1,
        )
        .write_parquet(answers, mode=ray.data.SaveMode.ERROR)
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
