"""The model card (README.md), in the Hub's format."""

from pathlib import Path

from train_loop.findings.assessment import Assessment


def render_model_card(
    assessment: Assessment, *, max_length: int, num_training_rows: int, num_taught_rows: int = 0, epochs: float
) -> str:
    """Return the card: what the model is, its held-out results, how to use it and how it was trained."""
    # Imported here: only needed at the end of a run.
    import jinja2
    from huggingface_hub import EvalResult, ModelCardData

    config, main = assessment.config, assessment.main
    results = [
        EvalResult(
            task_type="text-classification",
            dataset_type=config.dataset_name or "local",
            dataset_name=Path(config.dataset_name or config.train_file or "local").name,
            dataset_split=split,
            metric_type=metric,
            metric_value=round(found.values[metric], 6),
        )
        for split, found in assessment.metrics.items()
        for metric in main.card[:3]
    ]
    front_matter = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        base_model=config.model_name,
        tags=["rawloop"],
        model_name=assessment.name,
        eval_results=results,
    ).to_yaml()
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("train_loop.hub", ""),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )  # Markdown, not HTML: the Hub sanitizes what it renders
    return environment.get_template("card.md").render(
        front_matter=front_matter,
        assessment=assessment,
        classifier=main.classifier,
        config=config,
        max_length=max_length,
        metrics=main.card,
        weak=[found for found in assessment.slices if found.is_worse][:8],
        num_training_rows=num_training_rows,
        num_taught_rows=num_taught_rows,
        epochs=epochs,
    )
