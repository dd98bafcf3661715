import pytest


@pytest.fixture(scope="session", autouse=True)
def float32(without_bf16: None) -> None:
    """Compare in one precision, whatever the hardware."""


@pytest.fixture(scope="module")
def pictureless() -> "pytest.Generator[None]":
    """Leave the pictures of finished runs out: they take more than half of a tiny run. Others look at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train_loop.findings.results.draw_all", lambda *_: [])
        yield
